"""A file of safetensors that is read whole or not at all, and never as a pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from mmm_block.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (b"PK\x03\x04", b"\x80")
"""How a file begins that torch.save wrote, now and in former times."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file. Its tensors are views of it: what is kept must be copied.

    Args:
        path: The file.
    Returns:
        Tensors on the CPU by name, and the metadata.
    Raises:
        CheckpointError: It is missing, damaged, or a pickle, or may not be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        if os.path.exists(path):  # safetensors says the same of a file that may not be read
            raise CheckpointError(
                f"{path}: a file that may be read was expected, got one that may not. Look at its permissions."
            ) from error
        raise CheckpointError(
            f"{path.parent}: {path.name} was expected, got none. Copy or download it anew."
        ) from error
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:  # torch opens it once more
        if _first_bytes(path).startswith(PICKLED):
            raise CheckpointError(
                f"{path}: a safetensors file was expected, got a pickle, which runs code when it is read. "
                "Save it as safetensors where it was made."
            ) from error
        raise CheckpointError(
            f"{path}: a whole safetensors file was expected, got one that is damaged: {error}. "
            "Copy or download it anew."
        ) from error


def _first_bytes(path: Path) -> bytes:
    """How a file begins; nothing of one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""
