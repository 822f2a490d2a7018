"""Checkpoints by name: a folder here, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmm_block.errors import CheckpointError


def fetch(source: str | Path, patterns: list[str], **options: Any) -> Path:
    """The folder of a checkpoint.

    Args:
        source: A folder, or the name of a repository.
        patterns: The files that are needed of a repository.
        options: Further ones of `huggingface_hub.snapshot_download`.
    Returns:
        Where its files are; for a repository, in huggingface_hub's cache.
    Raises:
        CheckpointError: It is no folder, and the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if os.path.isdir(source):  # Path's raises for a name that is too long
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, **options))
    except HFValidationError as error:
        raise CheckpointError(
            f"{source}: a folder or the name of a repository, such as 'owner/name', was expected, got neither. "
            f"Give the folder as seen from {Path.cwd()}, or in full."
        ) from error
    except OSError as error:  # those of the hub and of its connections are among them
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise CheckpointError(
            f"{source}: is no folder here, and cannot be had from the hub: {reason}. "
            "Look at the name, the connection, and whether you may read the repository."
        ) from error
