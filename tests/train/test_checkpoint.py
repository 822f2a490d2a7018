"""Files are whole or not there."""

import os
from pathlib import Path

import pytest
import torch

from mmm_train.checkpoint import read_tensors, write_tensors, write_whole


def test_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_text() == "two"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    tensors = {
        "part": torch.arange(12.0).view(3, 4)[:, 1:3],
        "scalar": torch.tensor(3.0),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"step": 3})
    read, note = read_tensors(tmp_path / "a.safetensors")
    assert note == {"step": 3}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read["half"].dtype == torch.bfloat16
