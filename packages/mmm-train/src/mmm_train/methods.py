"""Fusion methods as users name them: by name, or by a Python file that holds them."""

from __future__ import annotations

import re
from pathlib import Path

import mmm_fusion
from mmm_train.errors import ConfigError

FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?", flags=re.DOTALL)
ALL = "all"


def load_plugin(path: Path) -> list[str]:
    """Register the fusion methods of a file for this process.

    Args:
        path: A Python file. It is run.
    Returns:
        Their names.
    Raises:
        mmm_fusion.FusionError: The file does not load, or a method of it breaks a rule.
    """
    return [method.name for method in mmm_fusion.load_file(path)]


def one_method(word: str) -> str:
    """The name of the method that a word means.

    Args:
        word: A name, or `FILE.py`, or `FILE.py:NAME` for one of several.
    Returns:
        The name; the methods of a file are registered.
    Raises:
        ConfigError: The file has several methods, or none of that name.
    """
    names, files = _split(word)
    if len(names) > 1:
        raise ConfigError(f"{files[0]}: has the methods {', '.join(names)}. Choose one: {files[0]}:{names[0]}")
    return names[0]


def several_methods(words: str) -> list[str] | None:
    """The methods that a list means.

    Args:
        words: What `one_method` takes, with commas between them; `all` means all. A file alone means all its methods.
    Returns:
        Their names, None for all; the methods of files are registered.
    Raises:
        ConfigError: A file has no method of the name that was asked for, or the list is empty.
    """
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    if not wanted:
        raise ConfigError("--fusion must be all, or methods with commas between them, got nothing.")
    names = [name for word in wanted if word != ALL for name in _split(word)[0]]
    return None if ALL in wanted else list(dict.fromkeys(names))


def _split(word: str) -> tuple[list[str], list[Path]]:
    """Names, and the file that they are in, if it is one."""
    match = FILE.fullmatch(word)
    if match is None:
        return [word], []
    path, wanted = Path(match["path"]), match["name"]
    names = load_plugin(path)
    if wanted is None:
        return names, [path]
    if wanted not in names:
        raise ConfigError(f"{path}: has no fusion method '{wanted}'. It has: {', '.join(names)}.")
    return [wanted], [path]
