"""Saving, loading and sharing a `MultiModalMamba`."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import mmm_fusion
from mmm_block import CheckpointError, ConfigError, MultiModalMamba
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


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in several files."""
    made(**TEXT).save_pretrained(tmp_path / "model", max_shard_size=600)
    return tmp_path / "model"


# What is saved is loaded.


@pytest.mark.parametrize("fields", [TEXT, IMAGES, IMAGES | {"fusion_method": "state"}])
def test_a_model_comes_back(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = made(**fields)
    with torch.no_grad():
        for parameter in model.parameters():  # none is as it starts
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = MultiModalMamba.from_pretrained(tmp_path)
    assert again.config == model.config
    assert same(again, model)
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, CONFIG, WEIGHTS]


def test_the_loaded_model_gives_the_same(saved: Path) -> None:
    torch.manual_seed(0)
    model, ids = made(**TEXT), torch.tensor([[1, 2, 3], [4, 5, 6]])
    model.save_pretrained(saved)
    assert torch.equal(MultiModalMamba.from_pretrained(saved)(ids).logits, model(ids).logits)


def test_tied_weights_are_saved_once_and_stay_tied(saved: Path) -> None:
    assert "lm_head.weight" not in load_file(saved / WEIGHTS)
    model = MultiModalMamba.from_pretrained(saved, dtype=torch.float64)
    assert model.lm_head.weight is model.embedding.weight
    model(torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    assert model.embedding.weight.grad is not None


def test_weights_that_are_not_tied(tmp_path: Path) -> None:
    model = made(**TEXT, tie_embeddings=False)
    model.save_pretrained(tmp_path)
    again = MultiModalMamba.from_pretrained(tmp_path)
    assert same(again, model)
    assert not torch.equal(again.lm_head.weight, again.embedding.weight)


def test_marks_for_optimisers_are_kept(saved: Path) -> None:
    model = MultiModalMamba.from_pretrained(saved, dtype=torch.bfloat16)
    marked = {name for name, each in made(**TEXT).named_parameters() if hasattr(each, "_no_weight_decay")}
    assert {name for name, each in model.named_parameters() if hasattr(each, "_no_weight_decay")} == marked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = made(**TEXT).to(dtype)
    model.save_pretrained(tmp_path)
    assert same(MultiModalMamba.from_pretrained(tmp_path), model)
    wide = MultiModalMamba.from_pretrained(tmp_path, dtype=torch.float32)
    assert same(wide, model.float())


def test_each_weight_keeps_its_own_dtype(tmp_path: Path) -> None:
    model = made(**TEXT).bfloat16()
    model.backbone.layers[1].mixer.A_log.data = torch.rand(16, 3)
    model.save_pretrained(tmp_path)
    assert same(MultiModalMamba.from_pretrained(tmp_path), model)


def test_weights_that_are_views(tmp_path: Path) -> None:
    model = made(**TEXT)
    model.embedding.weight.data = torch.randn(8, 30).t()[3:14]
    model.save_pretrained(tmp_path)
    assert same(MultiModalMamba.from_pretrained(tmp_path), model)
    assert (tmp_path / WEIGHTS).stat().st_size < 4 * sum(each.numel() for each in model.parameters()) + 8192


def test_a_loaded_model_does_not_change_with_its_file(saved: Path) -> None:
    model = MultiModalMamba.from_pretrained(saved)
    before = model.embedding.weight.clone()
    with (saved / WEIGHTS).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    assert torch.equal(model.embedding.weight, before)


def test_on_a_device(saved: Path) -> None:
    model = MultiModalMamba.from_pretrained(saved, device="meta")
    assert {each.device.type for each in own_tensors(model).values()} == {"meta"}


def test_fields_in_place_of_those_saved(saved: Path) -> None:
    assert MultiModalMamba.from_pretrained(saved, dropout=0.5).config.dropout == 0.5
    assert "unknown key 'dropuot'. Did you mean 'dropout'?" in error_of(saved, ConfigError, dropuot=0.5)


def test_loading_leaves_the_random_numbers_as_they_are(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    MultiModalMamba.from_pretrained(saved)
    assert torch.equal(torch.rand(3), expected)


def test_several_files_and_one(sharded: Path) -> None:
    model = MultiModalMamba.from_pretrained(sharded)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 5
    assert INDEX in os.listdir(sharded)
    largest = max(each.nbytes for each in own_tensors(model).values())
    assert all((sharded / file).stat().st_size < largest + 1000 for file in files)
    model.save_pretrained(sharded, max_shard_size="1MB")
    assert sorted(os.listdir(sharded)) == [CARD, CONFIG, WEIGHTS]
    assert same(MultiModalMamba.from_pretrained(sharded), model)
    model.save_pretrained(sharded, max_shard_size=600)
    assert sorted(path.name for path in sharded.glob("*.safetensors")) == files
    assert same(MultiModalMamba.from_pretrained(sharded), model)


def test_other_files_of_the_folder_stay(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    (saved / "model-notes.txt").write_text("mine")
    (saved / CARD).write_text("# My own words")
    made(**TEXT).save_pretrained(saved)
    assert (saved / CARD).read_text() == "# My own words"
    assert sorted(os.listdir(saved)) == [CARD, CONFIG, "model-notes.txt", WEIGHTS, "tokenizer.json"]


@pytest.mark.parametrize("moment", ["weights", "config", "card", "commit", "places"])
def test_a_crash_leaves_a_whole_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    old, new = MultiModalMamba.from_pretrained(saved), made(**TEXT | {"depth": 1})

    class Crash(BaseException):
        pass

    def crash(*args: object, **kwargs: object) -> None:
        raise Crash

    where = {
        "weights": "mmm_block.weights.save_file",
        "config": "mmm_block.checkpoint.write_json",
        "card": "huggingface_hub.ModelCard.save",
        "commit": "os.rename",
        "places": "os.link",
    }
    (saved / CARD).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(where[moment], crash)
        patch.setattr("shutil.rmtree", crash)  # nothing is tidied up
        with pytest.raises(Crash):
            new.save_pretrained(saved)
    found = MultiModalMamba.from_pretrained(saved)
    assert found.config == (new if moment == "places" else old).config
    assert same(found, new if moment == "places" else old)
    old.save_pretrained(saved)
    assert same(MultiModalMamba.from_pretrained(saved), old)
    assert sorted(os.listdir(saved)) == [CARD, CONFIG, WEIGHTS]


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


# Checkpoints that cannot be loaded: one error each.


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nowhere").startswith(
        f"{tmp_path}/nowhere: a folder or the name of a repository, such as 'owner/name', was expected, got neither."
    )
    assert error_of(tmp_path) == (
        f"{tmp_path}: config.json was expected, got none. Name a folder that save_pretrained wrote."
    )


def test_no_weights(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    assert error_of(saved) == (
        f"{saved}: model.safetensors was expected, got none. Name a folder that save_pretrained wrote."
    )


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_alone_is_never_read(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (saved / WEIGHTS).unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert error_of(saved) == (
        f"{saved}: model.safetensors was expected, got pytorch_model.bin. It is a pickle, which runs code when it is "
        "read, and is left alone. Save the weights as safetensors where they were made."
    )
    assert not Path("exploded").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_place_of_safetensors(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, saved / WEIGHTS, _use_new_zipfile_serialization=zipped)
    assert error_of(saved) == (
        f"{saved / WEIGHTS}: a safetensors file was expected, got a pickle, which runs code when it is read. "
        "Save the weights as safetensors where they were made."
    )
    assert not Path("exploded").exists()


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_cut_short(saved: Path, kept: int) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:kept])
    error = error_of(saved)
    assert error.startswith(f"{saved / WEIGHTS}: a whole safetensors file was expected, got one that is damaged: ")
    assert error.endswith(". Copy or download it anew.")


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file, and nothing else of it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["embedding.weight"].update(shape=[11, 9]),
        lambda header: header["embedding.weight"].update(dtype="F99"),
        lambda header: header["embedding.weight"].update(data_offsets=[0, 10**9]),
        lambda header: header.pop("embedding.weight"),
        lambda header: header.update(a=3),
    ],
)
def test_a_header_that_was_altered(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    altered(saved / WEIGHTS, change)
    assert error_of(saved).startswith(f"{saved / WEIGHTS}: a whole safetensors file was expected, got one that is")


def test_a_shape_that_was_altered(saved: Path) -> None:
    altered(saved / WEIGHTS, lambda header: header["embedding.weight"].update(shape=[8, 11]))
    assert error_of(saved) == (
        f"{saved}: the weights of the model that its config describes were expected; "
        "of another form: `embedding.weight` (8, 11) for (11, 8). Take config and weights from one checkpoint."
    )


def test_numbers_of_another_kind(saved: Path) -> None:
    altered(saved / WEIGHTS, lambda header: header["embedding.weight"].update(dtype="I32"))
    assert "`embedding.weight` (11, 8) int32 for (11, 8)." in error_of(saved)


def test_weights_of_another_model(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    del weights["embedding.weight"]
    save_file({**weights, "head.a": torch.ones(2), "head.b": torch.ones(2)}, saved / WEIGHTS)
    assert error_of(saved) == (
        f"{saved}: the weights of the model that its config describes were expected; "
        "missing: `embedding.weight`; too many: `head.a`, `head.b`. Take config and weights from one checkpoint."
    )
    assert (
        "missing: `backbone.layers.2.mixer.A_log`, `backbone.layers.2.mixer.D`, "
        "`backbone.layers.2.mixer.conv1d.bias` and 8 more;"
    ) in error_of(saved, depth=3)


def test_a_shard_is_missing(sharded: Path) -> None:
    file = sorted(path.name for path in sharded.glob("*.safetensors"))[3]
    (sharded / file).unlink()
    assert error_of(sharded) == f"{sharded}: {file} was expected, got none. Copy or download it anew."


def test_a_shard_of_another_checkpoint(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    error = error_of(sharded)
    assert error.startswith(f"{second}: the tensors that {INDEX} tells of were expected; missing: `")
    assert error.endswith("Take all files from one checkpoint.")


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\a", "c:a", "", ".."])
def test_an_index_that_leads_out_of_the_folder(sharded: Path, file: str) -> None:
    save_file({"embedding.weight": torch.zeros(11, 8)}, sharded.parent / "secret.safetensors")
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"embedding.weight": file}))
    assert error_of(sharded) == (
        f"{sharded / INDEX}: the name of a safetensors file beside it was expected for `embedding.weight`, "
        f"got {file!r}. Such an index may have been made to read other files: do not use it."
    )


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert error_of(sharded).startswith(f"{sharded / INDEX}: a `weight_map` from names of tensors to names of files")


def test_an_index_that_is_no_json(sharded: Path) -> None:
    (sharded / INDEX).write_text("{")
    assert error_of(sharded).startswith(f"{sharded / INDEX}: JSON was expected, got what is none: ")


def test_a_config_that_is_none(saved: Path) -> None:
    (saved / CONFIG).write_text('{"vocab_size": 11')
    assert error_of(saved).startswith(f"{saved / CONFIG}: JSON was expected, got what is none: ")
    (saved / CONFIG).write_text("[1]")
    assert error_of(saved) == f"{saved / CONFIG}: a JSON object was expected, got list. Restore the file."


def test_a_model_of_another_library(saved: Path) -> None:
    (saved / CONFIG).write_text('{"model_type": "mamba", "hidden_size": 8}')
    assert error_of(saved) == (
        f"{saved / CONFIG}: model_type must be 'multimodal_mamba', got 'mamba'. "
        "Mamba models of other libraries can be converted: see `python -m mmm_block convert --help`."
    )


def test_an_unknown_key(saved: Path) -> None:
    edit(saved / CONFIG, lambda values: values.update(dimm=3))
    assert error_of(saved, ConfigError) == (
        f"{saved / CONFIG}: MultiModalMambaConfig: unknown key 'dimm'. Did you mean 'dim'?"
    )


def test_another_fusion_contract(saved: Path) -> None:
    edit(saved / CONFIG, lambda values: values.update(fusion_contract=2))
    assert error_of(saved, ConfigError) == (
        f"{saved / CONFIG}: MultiModalMambaConfig: `fusion_contract` must be 1, which the installed mmm-fusion speaks, "
        "got 2. Install an mmm-fusion of that contract, or train anew."
    )


@pytest.mark.parametrize(
    ("key", "value"), [("dim", 0), ("mixer_options", {"bais": True}), ("depth", "two"), ("dropout", "much")]
)
def test_a_value_that_no_model_has(saved: Path, key: str, value: object) -> None:
    edit(saved / CONFIG, lambda values: values.update({key: value}))
    assert error_of(saved, ConfigError).startswith(f"{saved / CONFIG}: ")


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
