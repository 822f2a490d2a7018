"""Files that are whole or not there: one, or several of a folder together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mmm_block.errors import CheckpointError

T = TypeVar("T")

WRITING, WRITTEN = ".saving-", ".saved"
TRIES = 10
"""How often a folder is read that is written to each time."""


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
    count, and `read_steady` finds them there. Then they take their places, and `.saved` goes. Where the system has
    locks, others who save in the folder wait.

    Args:
        folder: The folder; made if it does not exist.
        stale: Names of files that are none of the new state unless they are written again.
    Yields:
        The folder to write them in. After an exception nothing has changed.
    Raises:
        CheckpointError: What is none of ours stands where a file or `.saved` goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _in_turn(folder):
        _put_in_place(folder, stale)  # what a crash has left
        for leftover in folder.glob(f"{WRITING}*"):
            if _is_folder(leftover):
                shutil.rmtree(leftover)
        new = Path(tempfile.mkdtemp(dir=folder, prefix=WRITING))
        try:
            yield new
            _check_places(folder, new)
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


def read_steady(folder: Path, patterns: Sequence[str], read: Callable[[Path], T]) -> T:
    """Read several files of a folder that are of one state, though somebody may save in it by `replacing` meanwhile.

    Args:
        folder: The folder.
        patterns: Names of the files that are read, as for `Path.glob`.
        read: Reads them in a folder: that one, or the one inside that a crash has left.
    Returns:
        What `read` returns.
    Raises:
        CheckpointError: What `read` raises, or others came each time that they were read.
    """
    written = folder / WRITTEN
    for _ in range(TRIES):
        before = _versions(folder, patterns)
        try:
            result = read(written if _is_folder(written) else folder)
        except Exception:  # whatever a library makes of a file that goes
            if _versions(folder, patterns) == before:
                raise
        else:
            if _versions(folder, patterns) == before:
                return result
    raise CheckpointError(
        f"{folder}: files that stay while they are read were expected, got others {TRIES} times. "
        "Read it while nobody saves there."
    )


def _versions(folder: Path, patterns: Iterable[str]) -> list[tuple[str, int, int]]:
    """Which files there are: one that is replaced is another."""
    found = []
    for path in sorted({path for pattern in (WRITTEN, *patterns) for path in folder.glob(pattern)}):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found.append((path.name, about.st_ino, about.st_mtime_ns))
    return found


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in here with this folder; a crash lets the next one in."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
        os.close(descriptor)


def _put_in_place(folder: Path, stale: re.Pattern[str]) -> None:
    """Give the files in `.saved` their places. It can be begun again: `.saved` stays whole until all are there."""
    written = folder / WRITTEN
    if not os.path.lexists(written):
        return
    names = [path.name for path in written.iterdir() if path.is_file()] if _is_folder(written) else []
    if not names or len(names) < len(list(written.iterdir())):
        raise CheckpointError(
            f"{written}: a folder of files was expected, as saving makes it, got something else. "
            "Move it away, and save again."
        )
    _check_places(folder, written)
    for path in folder.iterdir():
        if stale.fullmatch(path.name) and path.name not in names and not _is_folder(path):
            path.unlink()
    links = Path(tempfile.mkdtemp(dir=folder, prefix=WRITING))
    for name in names:
        _link(written / name, links / name)
        os.replace(links / name, folder / name)
    _sync(folder)
    os.rename(written, links / WRITTEN)
    shutil.rmtree(links)


def _check_places(folder: Path, new: Path) -> None:
    """Refuse to put files where folders stand."""
    for path in sorted(new.iterdir()):
        if _is_folder(folder / path.name):
            raise CheckpointError(
                f"{folder / path.name}: a file, or nothing, was expected where one is saved, got a folder. "
                "Move it away, and save again."
            )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


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
