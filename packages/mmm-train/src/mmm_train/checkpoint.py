"""Files that are whole or not there: JSON, and tensors in safetensors; nothing is pickled."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from mmm_train.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Args:
        path: The file, replaced if it exists.
        content: Its content; text becomes UTF-8, in which a half of a character, as file names have it, is an escape.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are for the owner alone
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
