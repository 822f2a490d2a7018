"""Tensors in files are whole or not there."""

from pathlib import Path

import torch

from mmm_train.checkpoint import read_tensors, write_tensors


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
