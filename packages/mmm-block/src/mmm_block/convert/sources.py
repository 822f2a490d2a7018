"""Checkpoints of other libraries: a config.json, and weights in safetensors or, if one allows it, in a pickle."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmm_block.checkpoint import CONFIG, NEEDED, read_config
from mmm_block.errors import CheckpointError
from mmm_block.files import read_steady
from mmm_block.hub import fetch
from mmm_block.tensor_file import read_tensors
from mmm_block.weights import INDEX, SINGLE, read_weights

if TYPE_CHECKING:
    from torch import Tensor

PICKLE = "pytorch_model.bin"


def read_source(source: str | Path, *, allow_pickle: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the config and the weights of a checkpoint of any library.

    Args:
        source: A folder, a file of weights with a config.json beside it, or a repository of the hub.
        allow_pickle: Read weights that are there as a pickle alone. torch's restricted reader reads it, which knows
            tensors and plain values alone; still, use it only on files whose makers you trust.
    Returns:
        What config.json holds, and tensors on the CPU.
    Raises:
        CheckpointError: A file is missing or damaged, or is a pickle and may not be read.
    """
    path = Path(source)
    if os.path.isfile(source):  # Path's raises for a name that is too long
        config = read_config(path.parent / CONFIG)
        return config, read_tensors(path)[0] if path.suffix == ".safetensors" else _read_pickle(path, allow_pickle)
    patterns = [*NEEDED, *([PICKLE] if allow_pickle else [])]

    def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        safe = (folder / SINGLE).is_file() or (folder / INDEX).is_file() or not (folder / PICKLE).is_file()
        config = read_config(folder / CONFIG)
        return config, read_weights(folder) if safe else _read_pickle(folder / PICKLE, allow_pickle)

    return read_steady(fetch(source, patterns), patterns, read)


def expect_mappings(where: str, config: object, state_dict: object) -> None:
    """Refuse what cannot be the config and the weights of a model.

    Raises:
        CheckpointError: One of them is no mapping.
    """
    for name, given in (("config", config), ("state_dict", state_dict)):
        if not isinstance(given, Mapping):
            raise CheckpointError(
                f"{where}: `{name}` must be a mapping, got {type(given).__name__}. Pass the dict that it is made of."
            )


def _read_pickle(path: Path, allowed: bool) -> dict[str, Tensor]:
    if not allowed:
        raise CheckpointError(
            f"{path}: a safetensors file was expected, got a pickle, which may run code when it is read. "
            "If you trust its maker, allow it: --allow-pickle, or allow_pickle=True."
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: a pickle of tensors alone was expected, got another, or a damaged one: {_reason(error)}. "
            "It was not read any further."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise CheckpointError(
            f"{path}: a state dict was expected, got a {type(weights).__name__} of other things. "
            "Save the state dict alone where it was made."
        )
    return weights


def _reason(error: Exception) -> str:
    """What torch's reader found, without its advice to read the file again by the one that runs code."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    advised = lines[0].startswith("Weights only load failed")
    return lines[-2 if advised and len(lines) > 2 else 0].rstrip(".")
