"""`python -m mmm_block convert`, and the files that it reads."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmm_block import CheckpointError, MultiModalMamba
from mmm_block.__main__ import main
from mmm_block.convert import assemble, convert_checkpoint, from_mamba, read_source
from mmm_block.weights import own_tensors
from mmm_vit import VisionTransformer, ViTConfig

MAMBA = {"model_type": "mamba", "hidden_size": 6, "num_hidden_layers": 2, "vocab_size": 11, "state_size": 3}
MAMBA_SSM = {"d_model": 6, "n_layer": 2, "vocab_size": 13, "ssm_cfg": {"d_state": 3}, "pad_vocab_size_multiple": 8}
IDS = torch.tensor([[1, 5, 3, 10, 2], [7, 7, 0, 1, 4]])


def of_transformers(words: int = 11, embedding: str = "backbone.embeddings") -> dict[str, Tensor]:
    """A state dict in transformers' names, which differ in the embedding's."""
    torch.manual_seed(1)
    model = MultiModalMamba(vocab_size=words, dim=6, depth=2, d_state=3)
    return {name.replace("embedding", embedding): each.detach() for name, each in own_tensors(model).items()}


def of_mamba_ssm() -> dict[str, Tensor]:
    weights = of_transformers(16, "backbone.embedding")
    return weights | {"lm_head.weight": weights["backbone.embedding.weight"]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as transformers writes it."""
    folder = tmp_path / "mamba-tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MAMBA))
    save_file(of_transformers(), folder / "model.safetensors")
    return folder


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A checkpoint as state-spaces publishes it."""
    folder = tmp_path / "mamba-ssm-tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MAMBA_SSM))
    torch.save(of_mamba_ssm(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    folder = tmp_path / "vit-tiny"
    folder.mkdir()
    config = {"architecture": "vit_tiny_patch8_16", "pretrained_cfg": {"input_size": [3, 16, 16]}}
    (folder / "config.json").write_text(json.dumps(config))
    model = VisionTransformer(ViTConfig(image_size=16, patch_size=8, dim=64, depth=1, heads=1))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that ends with status 2."""
    try:
        status: object = run(*words)
    except SystemExit as end:
        status = end.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, tmp_path / "out") == 0
    count = sum(each.numel() for each in of_transformers().values())
    assert capsys.readouterr() == (f"{tmp_path}/out: a MultiModalMamba of {count:,} parameters.\n", "")
    model = MultiModalMamba.from_pretrained(tmp_path / "out")
    expected = assemble(*from_mamba(MAMBA, load_file(source / "model.safetensors")))
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert "Converted from mamba-tiny." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("file", ["model.safetensors", "other.safetensors"])
def test_a_file_with_a_config_beside_it(source: Path, file: str) -> None:
    (source / "model.safetensors").rename(source / file)
    config, weights = read_source(source / file)
    assert config == MAMBA
    assert weights.keys() == of_transformers().keys()


def test_a_dtype(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", "--dtype=bfloat16")
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_with_an_encoder(source: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fusion", "q_former", "--heads=2", "--options", "queries=3", "depth=1", "--image-token-id=9"]
    assert run(source, tmp_path / "out", "--encoder", tower, *options) == 0
    assert capsys.readouterr().out.endswith(" Its fusion method 'q_former' has to be trained.\n")
    config = MultiModalMamba.from_pretrained(tmp_path / "out").config
    assert (config.fusion_method, config.heads, config.image_token_id) == ("q_former", 2, 9)
    assert config.fusion_options == {"queries": 3, "depth": 1}
    assert (config.image_size, config.encoder_dim) == ((16, 16), 64)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Put together from mamba-tiny and vit-tiny. The fusion method is not trained yet." in card


def test_a_pickle_is_read_if_that_is_allowed(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pickled / "pytorch_model.bin"
    for given in (pickled, file):
        assert failure(capsys, given, tmp_path / "out") == (
            f"python -m mmm_block: {file}: a safetensors file was expected, got a pickle, which may run code when it "
            "is read. If you trust its maker, allow it: --allow-pickle, or allow_pickle=True.\n"
        )
    assert not (tmp_path / "out").exists()
    assert run(pickled, tmp_path / "out", "--allow-pickle") == 0
    assert MultiModalMamba.from_pretrained(tmp_path / "out").config.vocab_size == 16
    assert run(file, tmp_path / "out2", "--allow-pickle") == 0


def test_safetensors_go_before_a_pickle(source: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"not looked at")
    assert read_source(source, allow_pickle=True)[1].keys() == of_transformers().keys()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: torch.save({"a": Bomb()}, file),
        lambda file: file.write_bytes(file.read_bytes()[:-300]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"nothing"),
    ],
)
def test_a_pickle_of_more_than_tensors(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(pickled / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"model.bin: a pickle of tensors alone was expected, got another(?!.*weights_only)"
    ):
        read_source(pickled, allow_pickle=True)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(2)}}, [torch.zeros(2)]])
def test_a_pickle_of_no_state_dict(pickled: Path, content: object) -> None:
    torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model.bin: a state dict was expected, got a (dict|list) of other"):
        read_source(pickled, allow_pickle=True)


def test_a_target_in_use_is_left_alone(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert failure(capsys, source, source) == (
        f"python -m mmm_block: {source}: a new or empty folder was expected, got one in use. Name another.\n"
    )
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert run(source, tmp_path / "empty") == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--fusion", "mlp"], "--fusion is for a model that reads images: give --encoder as well."),
        (["--image-token-id=3"], "--image-token-id is for a model that reads images: give --encoder as well."),
        (["--dtype=int8"], "convert: argument --dtype: invalid choice: 'int8'"),
        (["--heads=two"], "convert: argument --heads: invalid int value: 'two'. See --help."),
        (["--encodre=a"], "unrecognized arguments: --encodre=a. See --help."),
    ],
)
def test_words_that_make_no_sense(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert text in failure(capsys, source, source / "out", *words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--fusion", "concta"], "fusion method 'concta' is not registered. Did you mean 'concat'?"),
        (["--fusion", "mlp", "--options", "width=3"], "fusion method 'mlp' has no option 'width'."),
        (["--options", "queries"], "--options: must be key=value or a JSON object, got 'queries'."),
        (["--image-token-id=11"], "`image_token_id` must be a token from 0 to below vocab_size = 11, or None, got 11."),
    ],
)
def test_options_that_no_model_has(
    source: Path, tower: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert text in failure(capsys, source, source / "out", "--encoder", tower, *words)
    assert not (source / "out").exists()


def test_a_disk_that_is_full(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmm_block.weights.save_file", full)
    assert run(source, tmp_path / "out") == 1
    assert capsys.readouterr().err == "python -m mmm_block: [Errno 28] No space left on device.\n"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"convert +make a checkpoint of another library", out)
    assert err == ""


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmm_block", "convert", str(tmp_path / "none"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"python -m mmm_block: {tmp_path}/none: a folder or the name of a repository")


def test_a_function_for_it(source: Path, tmp_path: Path) -> None:
    model = convert_checkpoint(source, tmp_path / "out", dtype=torch.float64)
    assert torch.equal(MultiModalMamba.from_pretrained(tmp_path / "out")(IDS).logits, model(IDS).logits)
