"""What a checkpoint says of itself, fusion methods that are not there, and the hub."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import mmm_fusion
from mmm_block import CheckpointError, MultiModalMamba
from mmm_block.weights import own_tensors
from mmm_fusion import UnknownMethodError, loading, local

TEXT: dict[str, Any] = {"vocab_size": 11, "dim": 8, "depth": 2, "d_state": 3}
IMAGES = TEXT | {
    "image_size": [16, 24],
    "patch_size": 8,
    "encoder_dim": 6,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_options": {"class_token": True},
    "heads": 2,
    "image_token_id": 3,
}
WEIGHTS, INDEX, CONFIG, CARD = "model.safetensors", "model.safetensors.index.json", "config.json", "README.md"


def made(**fields: Any) -> MultiModalMamba:
    return MultiModalMamba(**fields).eval()


def same(one: MultiModalMamba, other: MultiModalMamba) -> bool:
    mine, yours = own_tensors(one), own_tensors(other)
    return mine.keys() == yours.keys() and all(
        mine[name].dtype == yours[name].dtype and torch.equal(mine[name], yours[name]) for name in mine
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def error_of(folder: str | Path, kind: type[Exception] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        MultiModalMamba.from_pretrained(folder, **options)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A text model in a folder."""
    made(**TEXT).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# The config and the card.


def test_the_config_file(tmp_path: Path) -> None:
    model = made(**IMAGES, fusion_method="gated")
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    assert values | model.config.to_dict() == values
    assert values["model_type"] == "multimodal_mamba"
    assert values["fusion_source"] == {"distribution": "mmm-fusion", "version": "0.1.0"}
    assert values["packages"]["mmm-block"] == "0.1.0"
    assert values["packages"].keys() == {"mmm-block", "mmm-fusion", "mmm-vit", "mmm-core", "torch"}


def test_the_card_names_method_distribution_and_sizes(tmp_path: Path) -> None:
    model = made(**IMAGES, fusion_method="film")
    model.save_pretrained(tmp_path, model_card_kwargs={"description": "Trained on squares."})
    card = huggingface_hub.ModelCard.load(tmp_path / CARD)
    assert "`film` of mmm-fusion-film 0.1.0, contract 1" in card.text
    assert "$ pip install mmm-block mmm-fusion-film==0.1.0\n" in card.text
    assert f"| parameters | {sum(each.numel() for each in model.parameters()):,} |" in card.text
    assert "| images | 16 × 24 pixels, patches of 8 × 8 |" in card.text
    assert "Trained on squares." in card.text
    assert "MultiModalMamba.from_pretrained(" in card.text
    assert card.data.library_name == "mmm-block"
    assert card.data.pipeline_tag == "image-text-to-text"


def test_the_card_of_a_text_model(saved: Path) -> None:
    card = huggingface_hub.ModelCard.load(saved / CARD)
    assert "$ pip install mmm-block\n" in card.text
    assert "fusion" not in card.text
    assert card.data.pipeline_tag == "text-generation"


# Fusion methods that are not there.


@pytest.fixture
def film(tmp_path: Path) -> Path:
    made(**IMAGES, fusion_method="film").save_pretrained(tmp_path / "film")
    return tmp_path / "film"


@pytest.fixture
def _without_plugins(film: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "block")
    loading.installed.cache_clear()
    yield
    loading.installed.cache_clear()


@pytest.mark.usefixtures("_without_plugins")
def test_a_plugin_that_is_missing(film: Path) -> None:
    error = error_of(film, UnknownMethodError)
    assert error.startswith(f"{film / CONFIG}: fusion method 'film' is not registered.")
    assert error.endswith(
        "The checkpoint was made with that of mmm-fusion-film==0.1.0: install it by "
        "`pip install mmm-fusion-film==0.1.0`."
    )


@pytest.mark.parametrize(
    "was",
    [
        {},
        3,
        None,
        {"distribution": "a; rm -rf ~", "version": "1"},
        {"distribution": 3, "version": 4},
        {"place": "\x1b"},
        {"place": 3, "sha256": 4},
    ],
)
@pytest.mark.usefixtures("_without_plugins")
def test_no_advice_where_the_source_is_none(film: Path, was: object) -> None:
    edit(film / CONFIG, lambda values: values.update(fusion_source=was))
    assert error_of(film, UnknownMethodError).endswith("See `python -m mmm_fusion`.")


def test_a_method_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_here", {})
    source = tmp_path / "own.py"
    source.write_text("from mmm_fusion.methods import Concat\n\nclass Own(Concat):\n    name = 'own'\n")
    mmm_fusion.load_file(source)
    model = made(**IMAGES, fusion_method="own")
    model.save_pretrained(tmp_path / "model")
    assert "`own` of own.py (sha256 " in (tmp_path / "model" / CARD).read_text()
    assert same(MultiModalMamba.from_pretrained(tmp_path / "model"), model)

    source.write_text(source.read_text() + "\nMORE = 1\n")
    mmm_fusion.load_file(source)
    with pytest.warns(UserWarning, match=r"was made with fusion method 'own' of own.py .*, it is now of own.py "):
        MultiModalMamba.from_pretrained(tmp_path / "model")
    monkeypatch.setattr(local, "_here", {})
    error = error_of(tmp_path / "model", UnknownMethodError)
    assert re.search(r"that of own.py \(sha256 \w{12}\): load that file by mmm_fusion.load_file\.$", error)


def test_a_method_of_another_distribution(film: Path) -> None:
    edit(film / CONFIG, lambda values: values.update(fusion_source={"distribution": "acme", "version": "2"}))
    with pytest.warns(UserWarning, match="with fusion method 'film' of acme 2, it is now of mmm-fusion-film 0.1.0"):
        MultiModalMamba.from_pretrained(film)


def test_a_source_that_is_no_text(film: Path) -> None:
    was = {"place": "a.py", "sha256": 3, "version": "\x1b[2J"}
    edit(film / CONFIG, lambda values: values.update(fusion_source=was))
    with pytest.warns(UserWarning, match="with fusion method 'film' of a.py, it is now of mmm-fusion-film 0.1.0"):
        MultiModalMamba.from_pretrained(film)


# The hub, as far as it can be had without one.


def test_a_repository_is_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    options = {"revision": "v2", "token": "t", "cache_dir": "c", "local_files_only": True}
    model = MultiModalMamba.from_pretrained("owner/name", **options)
    assert same(model, MultiModalMamba.from_pretrained(saved))
    assert asked == {
        "name": "owner/name",
        "allow_patterns": ["config.json", "model*.safetensors", "model.safetensors.index.json"],
        "force_download": False,
        **options,
    }


def test_a_repository_of_the_cache(saved: Path, tmp_path: Path) -> None:
    home, commit = tmp_path / "cache" / "models--owner--name", "c" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    saved.rename(home / "snapshots" / commit)
    MultiModalMamba.from_pretrained("owner/name", cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_repository_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of("owner/name", cache_dir=tmp_path, local_files_only=True)
    assert error.startswith("owner/name: is no folder here, and cannot be had from the hub: ")
    assert error.endswith(". Look at the name, the connection, and whether you may read the repository.")

    def offline(*args: object, **options: object) -> None:
        raise LocalEntryNotFoundError("no connection.\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "cannot be had from the hub: no connection. Look" in error_of("owner/name")


class Hub:
    """Stands for `HfApi`: keeps what it is given."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **options: Any) -> "Hub":
        self.repo_id = repo_id
        return self

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        Hub.options = options
        Hub.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return "the address"


@pytest.mark.parametrize("by", ["push_to_hub", "save_pretrained"])
def test_a_model_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    model = made(**IMAGES, fusion_method="film")
    if by == "push_to_hub":
        address = model.push_to_hub("owner/name", private=True, branch="v2")
    else:
        address = model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="owner/name", branch="v2")
    assert address == "the address"
    assert Hub.files.keys() == {CARD, CONFIG, WEIGHTS}
    assert (Hub.options["repo_id"], Hub.options["revision"]) == ("owner/name", "v2")
    assert Hub.options["delete_patterns"] == ["model*.safetensors", INDEX]
    card = Hub.files[CARD].decode()
    assert "\n# owner/name\n" in card
    assert 'MultiModalMamba.from_pretrained("owner/name")' in card
    (tmp_path / "b").mkdir()
    for name, content in Hub.files.items():
        (tmp_path / "b" / name).write_bytes(content)
    assert same(MultiModalMamba.from_pretrained(tmp_path / "b"), model)


def test_importing_the_package_leaves_the_hub_alone() -> None:
    code = "import sys, mmm_block; mmm_block.MultiModalMambaBlock; print('huggingface_hub.hub_mixin' in sys.modules)"
    code += "; mmm_block.MultiModalMamba; print('huggingface_hub.hub_mixin' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_a_name_that_the_package_does_not_have() -> None:
    import mmm_block

    with pytest.raises(AttributeError, match="module 'mmm_block' has no attribute 'MultiModelMamba'"):
        mmm_block.MultiModelMamba  # noqa: B018
