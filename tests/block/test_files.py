"""Files are whole or not there, one or several of a folder together."""

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mmm_block import CheckpointError
from mmm_block.files import read_steady, replacing, write_whole

STALE = re.compile(r"weights.*")
OLD = {"config": "old", "weights": "old", "weights-2": "old", "mine": "kept"}
NEW = {"config": "new", "weights": "new", "weights-1": "new", "mine": "kept"}


class Crash(BaseException):
    """The process is gone: nothing that it would still do is done."""


class Machine:
    """Counts what is done to the disk, and goes down before a number of it."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int) -> None:
        self.left = last
        for owner, names in ((os, ("fsync", "rename", "replace", "link", "unlink", "chmod")), (shutil, ("rmtree",))):
            for name in names:
                patch.setattr(owner, name, self.watched(getattr(owner, name)))
        patch.setattr(tempfile, "mkdtemp", self.watched(tempfile.mkdtemp))

    def watched(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def done(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Crash
            return do(*args, **kwargs)

        return done


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def save(folder: Path) -> None:
    with replacing(folder, STALE) as new:
        write(new, {name: text for name, text in NEW.items() if name != "mine"})


def crashes(tmp_path: Path) -> Iterator[Path]:
    """A folder for each moment at which the machine can go down while it saves; the last time it does not."""
    for moment in count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        write(folder, OLD)
        with pytest.MonkeyPatch.context() as patch:
            Machine(patch, moment)
            try:
                save(folder)
            except Crash:
                pass
            else:
                return
        yield folder


def state_of(folder: Path) -> dict[str, str]:
    """What a reader finds: files of the new state beside those of its own."""
    return {"mine": (folder / "mine").read_text(), **read_steady(folder, ["config", "weights*"], read)}


def test_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_text() == "two"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_several_files_are_replaced_together(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    save(tmp_path)
    assert read(tmp_path) == NEW
    assert {path.name for path in tmp_path.iterdir()} == NEW.keys()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b")
    assert {**read(tmp_path / "a" / "b"), "mine": "kept"} == NEW


def test_a_crash_at_any_moment_leaves_the_old_files_or_the_new_ones(tmp_path: Path) -> None:
    found = [state_of(folder) for folder in crashes(tmp_path)]
    news = [state == NEW for state in found]
    assert all(state == OLD for state, new in zip(found, news, strict=True) if not new)
    assert news == sorted(news)  # once they are new, they stay so
    assert 5 < news.index(True) < len(news) - 5


def test_after_a_crash_at_any_moment_the_next_save_works(tmp_path: Path) -> None:
    for folder in crashes(tmp_path):
        newer = {"config": "newer", "weights-3": "newer"}
        with replacing(folder, STALE) as new:
            write(new, newer)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"mine": "kept", **newer}


def test_an_exception_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, OLD)

    def interrupted() -> None:
        with replacing(tmp_path, STALE) as new:
            write(new, {"weights": "half"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == OLD


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise PermissionError("not supported")

    monkeypatch.setattr(os, "link", fail)
    write(tmp_path, OLD)
    save(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == NEW


def test_files_that_others_may_read(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path, STALE) as new:
            os.close(os.open(new / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(mask)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_a_reader_beside_a_saver_finds_files_of_one_state(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    reads = []

    def while_it_saves(folder: Path) -> dict[str, str]:
        config = (folder / "config").read_text()
        if not reads:
            save(tmp_path)
        reads.append(folder)
        return {"config": config, "weights": (folder / "weights").read_text()}

    assert read_steady(tmp_path, ["config", "weights*"], while_it_saves) == {"config": "new", "weights": "new"}
    assert len(reads) == 2


def test_a_reader_whose_folder_goes(tmp_path: Path) -> None:
    (tmp_path / ".saved").mkdir()
    write(tmp_path / ".saved", {"config": "old", "weights": "old"})

    def while_it_saves(folder: Path) -> dict[str, str]:
        save(tmp_path)
        return read(folder)

    with pytest.raises(CheckpointError) as caught:
        read_steady(tmp_path, ["weights*"], while_it_saves)
    assert str(caught.value) == (
        f"{tmp_path}: files that stay while they are read were expected, got others 10 times. "
        "Read it while nobody saves there."
    )


def test_an_error_of_a_folder_that_nobody_writes_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights"):
        read_steady(tmp_path, ["weights*"], lambda folder: (folder / "weights").read_text())


def test_two_savers_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    come = threading.Event()  # to the door, or out again
    second = threading.Thread(target=lambda: (save(tmp_path), come.set()))
    lock, asked = fcntl.flock, []

    def flock(*args: Any) -> None:
        asked.append(args)
        if len(asked) == 2:
            come.set()
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    with replacing(tmp_path, STALE) as new:
        write(new, {"weights": "first"})
        second.start()
        come.wait()
        write(new, {"config": "first", "weights-9": "first"})
    second.join()
    assert {**read(tmp_path), "mine": "kept"} == NEW
    assert {path.name for path in tmp_path.iterdir()} == NEW.keys() - {"mine"}


@pytest.mark.parametrize("kind", ["file", "link", "nested", "empty"])
def test_what_no_save_has_left_is_not_lost(tmp_path: Path, kind: str) -> None:
    folder, saved = tmp_path / "model", tmp_path / "model" / ".saved"
    folder.mkdir()
    write(folder, OLD)
    match kind:
        case "file":
            saved.write_text("mine")
        case "link":
            saved.symlink_to(tmp_path)
        case "nested":
            (saved / "weights").mkdir(parents=True)
            (saved / "config").write_text("mine")
        case "empty":
            saved.mkdir()
    with pytest.raises(CheckpointError) as caught:
        save(folder)
    assert str(caught.value) == (
        f"{saved}: a folder of files was expected, as saving makes it, got something else. "
        "Move it away, and save again."
    )
    assert read(folder) == OLD | ({".saved": "mine"} if kind == "file" else {})
    saved.rename(tmp_path / "away")
    save(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == NEW


def test_files_and_links_of_the_names_of_leftovers_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, {**OLD, ".saving-a": "mine"})
    (folder / ".saving-b").symlink_to(tmp_path)
    save(folder)
    assert read(folder) == {**NEW, ".saving-a": "mine"}
    assert (folder / ".saving-b").is_symlink()


@pytest.mark.parametrize("crashed", [False, True])
def test_a_folder_where_a_file_goes(tmp_path: Path, crashed: bool) -> None:
    write(tmp_path, {name: text for name, text in OLD.items() if name != "config"})
    (tmp_path / "config" / "mine").mkdir(parents=True)
    if crashed:
        (tmp_path / ".saved").mkdir()
        write(tmp_path / ".saved", {"config": "crashed", "weights": "crashed"})
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'config'}: a file, or nothing, was expected where one is saved, got a folder. "
        "Move it away, and save again."
    )
    assert read(tmp_path) == {name: text for name, text in OLD.items() if name != "config"}
    assert (tmp_path / "config" / "mine").is_dir()
    (tmp_path / "config").rename(tmp_path / "away")
    save(tmp_path)
    assert read(tmp_path) == NEW


def test_a_folder_of_the_name_of_an_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "weights-7").mkdir()
    save(tmp_path)
    assert (tmp_path / "weights-7").is_dir()
