"""A tree of tuples, tensors and plain values in one file of safetensors: how a `ModelState` is stored.

The tensors are named by their places in the tree, "layers.0.conv" say. The metadata hold the tree itself as JSON, in
which an object stands for the tensor that it names, and a checksum of it all.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from mmm_block.errors import CheckpointError, InputError
from mmm_block.files import write_whole
from mmm_block.tensor_file import read_tensors

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

FORMAT = "mmm_block.ModelState 1"


def write_state(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Write named trees, whole or not at all.

    Args:
        path: The file, replaced if it exists.
        tree: Tuples, tensors, None, bools, numbers and strings, by name.
    Raises:
        InputError: Something else is among them.
    """
    tensors: dict[str, Tensor] = {}
    described = json.dumps({name: _describe(name, value, tensors) for name, value in tree.items()})
    metadata = {"format": FORMAT, "tree": described, "crc32": _checksum(described, tensors)}
    write_whole(Path(path), safetensors.torch.save(tensors, metadata))


def read_state(path: str | os.PathLike[str], device: torch.device | str) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Args:
        path: The file.
        device: Where the tensors go.
    Returns:
        The trees by name; named tuples have become tuples.
    Raises:
        CheckpointError: It cannot be read, is damaged, or is another kind of file.
    """
    tensors, metadata = read_tensors(Path(path))
    if metadata.get("format") != FORMAT:
        got = metadata.get("format", "other tensors")
        raise CheckpointError(
            f"{path}: what ModelState.save writes ('{FORMAT}') was expected, got {got}. Name another file."
        )
    described = metadata.get("tree", "")
    if metadata.get("crc32") != _checksum(described, tensors):
        raise CheckpointError(
            f"{path}: the checksum of what ModelState.save wrote was expected, got another: it is damaged. "
            "Copy it anew."
        )
    tensors = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    try:
        return {name: _restore(value, tensors) for name, value in json.loads(described).items()}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise wrong(path, f"{type(error).__name__}: {error}") from error


def wrong(path: str | os.PathLike[str], got: str) -> CheckpointError:
    """What to raise for a whole file of another content.

    Args:
        path: The file.
        got: What it holds.
    Returns:
        The error.
    """
    return CheckpointError(
        f"{path}: what this ModelState.save writes was expected, got {got}. "
        "Save the state anew, with the version that reads it."
    )


def _describe(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """What stands for the value in JSON; its tensors go to the others."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, tuple):
        keys = getattr(value, "_fields", range(len(value)))
        return [_describe(f"{name}.{key}", each, tensors) for key, each in zip(keys, value, strict=True)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"ModelState.save: `{name}` must be a tensor, a tuple or a plain value, got {type(value).__name__}. "
        "Have the fusion method keep tensors."
    )


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    return tuple(_restore(each, tensors) for each in value) if isinstance(value, list) else value


def _checksum(described: str, tensors: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(described.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return str(value)
