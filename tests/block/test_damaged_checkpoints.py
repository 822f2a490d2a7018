"""Checkpoints that cannot be loaded: one error each, and nothing is unpickled."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmm_block import CheckpointError, ConfigError, MultiModalMamba
from mmm_block.convert import read_source

TEXT: dict[str, Any] = {"vocab_size": 11, "dim": 8, "depth": 2, "d_state": 3}
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def error_of(folder: Path, kind: type[Exception] = CheckpointError, **fields: Any) -> str:
    with pytest.raises(kind) as caught:
        MultiModalMamba.from_pretrained(folder, **fields)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A text model in a folder."""
    MultiModalMamba(**TEXT).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in several files."""
    MultiModalMamba(**TEXT).save_pretrained(tmp_path / "model", max_shard_size=600)
    return tmp_path / "model"


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nowhere").startswith(
        f"{tmp_path}/nowhere: a folder or the name of a repository, such as 'owner/name', was expected, got neither."
    )
    assert error_of(tmp_path) == (
        f"{tmp_path}: config.json was expected, got none. Name a folder that save_pretrained wrote."
    )


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "a" * 90 + "/" + "b" * 300])
def test_a_name_that_no_file_can_have(name: str) -> None:
    assert "a folder or the name of a repository, such as 'owner/name', was expected, got neither." in error_of(
        Path(name)
    )
    with pytest.raises(CheckpointError, match="a folder or the name of a repository"):
        read_source(name)


def test_a_file_that_may_not_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("mmm_block.checkpoint.read_config", lambda path: {"model_type": "multimodal_mamba", **TEXT})
    assert error_of(saved).startswith(f"{saved / WEIGHTS}: a whole safetensors file was expected, got one that is")


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
        "Save it as safetensors where it was made."
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


def test_json_that_is_nested_too_deep(sharded: Path) -> None:
    for name in (INDEX, CONFIG):
        (sharded / name).write_text("[" * 200_000)
        assert error_of(sharded).startswith(f"{sharded / name}: JSON was expected, got what is none: ")


def test_sizes_beyond_the_memory(saved: Path) -> None:
    edit(saved / CONFIG, lambda values: values.update(vocab_size=2**55))
    error = error_of(saved, ConfigError)
    assert error.startswith(f"{saved / CONFIG}: ")
    assert "\n" not in error
