"""Files that are whole or not there: JSON, and tensors in safetensors; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from mmm_block.files import write_whole
from mmm_train.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder; it holds an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path.parent}: not a run folder, it has no {path.name}.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: a JSON object was expected, got {type(value).__name__}.")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a small note in one file, whole or not at all."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(own, {"note": json.dumps(note)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise RunError(
            f"{path.parent}: no checkpoint, {path.name} is missing. Train the model first, or name another run."
        ) from error
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:  # torch opens it once more
        raise RunError(f"{path}: not a readable checkpoint: {error}.") from error
