"""Files that are whole or not there: one, or several of a folder together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

WRITING, WRITTEN = ".saving-", ".saved"


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
    _sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replacing(folder: Path, stale: re.Pattern[str]) -> Iterator[Path]:
    """Write several files of a folder so that a crash at any moment leaves all old ones or all new ones.

    The new ones are written in a folder inside. Once they are on the disk it gets the name `.saved`: from then on they
    count, and `current` finds them there. Then they take their places, and `.saved` goes.

    Args:
        folder: The folder; made if it does not exist.
        stale: Names of files that are none of the new state unless they are written again.
    Yields:
        The folder to write them in. After an exception nothing has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _put_in_place(folder, stale)  # what a crash has left
    for leftover in folder.glob(f"{WRITING}*"):
        shutil.rmtree(leftover)
    new = Path(tempfile.mkdtemp(dir=folder, prefix=WRITING))
    try:
        yield new
        for path in new.iterdir():
            os.chmod(path, 0o666 & ~_umask())  # safetensors' files are for the owner alone
            _sync(path)
        os.chmod(new, 0o777 & ~_umask())
        _sync(new)
        os.rename(new, folder / WRITTEN)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(folder)
    _put_in_place(folder, stale)


def current(folder: Path) -> Path:
    """Where the files of a folder are that `replacing` wrote: in it, or after a crash inside."""
    written = folder / WRITTEN
    return written if written.is_dir() else folder


def _put_in_place(folder: Path, stale: re.Pattern[str]) -> None:
    """Give the files in `.saved` their places. It can be begun again: `.saved` stays whole until all are there."""
    written = folder / WRITTEN
    if not written.is_dir():
        return
    names = [path.name for path in written.iterdir()]
    for path in folder.iterdir():
        if stale.fullmatch(path.name) and path.name not in names:
            path.unlink()
    links = Path(tempfile.mkdtemp(dir=folder, prefix=WRITING))
    for name in names:
        _link(written / name, links / name)
        os.replace(links / name, folder / name)
    _sync(folder)
    os.rename(written, links / WRITTEN)
    shutil.rmtree(links)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        _sync(target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name != "posix" and path.is_dir():  # there a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
