"""What is saved of a `MultiModalMamba` is loaded, whatever happens meanwhile."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmm_fusion
from mmm_block import CheckpointError, ConfigError, MultiModalMamba
from mmm_block.weights import own_tensors, read_weights
from mmm_fusion import local
from mmm_fusion.methods import Concat

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
    model, images = made(**IMAGES, fusion_method="concat"), torch.randn(2, 3, 16, 24)
    model.save_pretrained(saved)
    ids = torch.tensor([[1, 3, 2], [3, 5, 6]])
    assert torch.equal(MultiModalMamba.from_pretrained(saved)(ids, images).logits, model(ids, images).logits)


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
    first, second = (layer.mixer.D for layer in model.backbone.layers)
    first.data, second.data = torch.randn(1000)[100:132].chunk(2)
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


class Scaled(Concat):
    """Has a tensor that no file keeps."""

    name = "scaled"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)
        self.register_buffer("scale", torch.nn.init.normal_(torch.empty(3)), persistent=False)


def test_what_no_file_keeps_is_as_wide_as_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_here", {})
    mmm_fusion.register(Scaled)
    made(**IMAGES, fusion_method="scaled").bfloat16().save_pretrained(tmp_path)
    scale = MultiModalMamba.from_pretrained(tmp_path).backbone.fusion.scale
    assert scale.dtype == torch.bfloat16
    assert scale.isfinite().all()


def test_on_a_device(saved: Path) -> None:
    model = MultiModalMamba.from_pretrained(saved, device="meta")
    assert {each.device.type for each in own_tensors(model).values()} == {"meta"}


def test_fields_in_place_of_those_saved(saved: Path) -> None:
    assert MultiModalMamba.from_pretrained(saved, dropout=0.5).config.dropout == 0.5
    with pytest.raises(ConfigError, match=r"unknown key 'dropuot'\. Did you mean 'dropout'\?"):
        MultiModalMamba.from_pretrained(saved, dropuot=0.5)


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


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_a_dtype_that_no_weight_has(saved: Path, dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"from_pretrained: `dtype` must be a floating torch\.dtype, or None, got "):
        MultiModalMamba.from_pretrained(saved, dtype=dtype)


def test_a_misspelt_argument(saved: Path) -> None:
    before = (saved / WEIGHTS).stat()
    with pytest.raises(TypeError, match=r"with push_to_hub=True those of push_to_hub, got max_shard_sise\.$"):
        made(**TEXT).save_pretrained(saved, max_shard_sise=3)
    with pytest.raises(TypeError, match=r"got config\.$"):
        made(**TEXT).save_pretrained(saved, config={"dim": 3})
    assert (saved / WEIGHTS).stat() == before


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


@pytest.mark.parametrize("form", [{}, {"max_shard_size": 600}])
def test_a_model_that_is_saved_while_it_is_loaded(
    saved: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    new, saves = made(**TEXT), []

    def read(folder: Path) -> dict[str, torch.Tensor]:  # the old config has been read
        if not saves:
            saves.append(new.save_pretrained(saved, **form))
        return read_weights(folder)

    monkeypatch.setattr("mmm_block.checkpoint.read_weights", read)
    MultiModalMamba(**TEXT | {"dim": 16}).save_pretrained(saved)
    loaded = MultiModalMamba.from_pretrained(saved)
    assert loaded.config == new.config
    assert same(loaded, new)


def test_a_file_that_goes_while_it_is_opened(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, saves = made(**TEXT), []
    open_again = torch.UntypedStorage.from_file  # by its name, once safetensors has read the header

    def opened(*args: Any, **options: Any) -> torch.UntypedStorage:
        if not saves:
            saves.append(new.save_pretrained(saved))
        return open_again(*args, **options)

    made(**TEXT).save_pretrained(saved, max_shard_size=600)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", staticmethod(opened))
    assert same(MultiModalMamba.from_pretrained(saved), new)


class Remembering(torch.nn.Linear):
    def get_extra_state(self) -> object:
        return {"seen": 3}


def test_a_module_that_keeps_more_than_tensors(saved: Path) -> None:
    model, before = made(**TEXT), (saved / WEIGHTS).read_bytes()
    model.lm_head = Remembering(8, 11, bias=False)
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(saved)
    assert str(caught.value) == (
        "MultiModalMamba: parameters and buffers alone were expected in its state dict, got `lm_head._extra_state`. "
        "No checkpoint keeps it: use a buffer instead."
    )
    assert (saved / WEIGHTS).read_bytes() == before


def test_a_folder_in_the_place_of_a_config(saved: Path) -> None:
    weights = (saved / WEIGHTS).read_bytes()
    (saved / CONFIG).unlink()
    (saved / CONFIG).mkdir()
    with pytest.raises(CheckpointError, match="JSON was expected, got what is none: "):
        MultiModalMamba.from_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"config\.json: a file, or nothing, was expected where one is saved"):
        made(**TEXT).save_pretrained(saved)
    assert (saved / WEIGHTS).read_bytes() == weights


def test_weights_of_two_names_in_one_memory(tmp_path: Path) -> None:
    model = MultiModalMamba(**TEXT, tie_embeddings=False)
    model.lm_head.weight.data = model.embedding.weight.data
    model.save_pretrained(tmp_path / "model")
    loaded = MultiModalMamba.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, model.embedding.weight)
    assert loaded.lm_head.weight is not loaded.embedding.weight
