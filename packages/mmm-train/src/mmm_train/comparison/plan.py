"""What a comparison trains, and compare.json, which says how far it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mmm_fusion
from mmm_block.files import write_json
from mmm_block.origins import origin
from mmm_train.checkpoint import read_json
from mmm_train.comparison.member import RESULT
from mmm_train.comparison.summary import COLUMNS
from mmm_train.config import Config
from mmm_train.data import QuestionSet
from mmm_train.errors import RunError
from mmm_train.evaluate import QuestionOnly, Scores, score
from mmm_train.run import PACKAGES
from mmm_train.terminal import printable

VERSION = 1
"""Of compare.json."""
FILE = "compare.json"
LONGEST = 500
"""Characters of a reason."""


@dataclass
class Member:
    """One run of a comparison.

    Args:
        method: Name of the fusion method.
        seed: Start of every random number.
        source: Where the method comes from, see `mmm_block.origins`.
        measured: What `measure` returned; None before the run is done.
        failure: Why it failed, in one line.
    """

    method: str
    seed: int
    source: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] | None = None
    failure: str | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.method}-seed{self.seed}"

    @property
    def status(self) -> str:
        """done, failed, or open: not trained yet, or not to the end."""
        return "done" if self.measured else "failed" if self.failure else "open"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as compare.json has them."""
        about = {"method": self.method, "seed": self.seed, "source": self.source, "folder": self.name}
        return {**about, "status": self.status, "failure": self.failure, "measured": self.measured}


@dataclass
class Plan:
    """A comparison in its folder.

    Args:
        folder: Where it is.
        common: What all its runs have in common: settings, data, packages.
        question_only: Scores of the predictor without pictures.
        members: Its runs, in the order of training.
    """

    folder: Path
    common: dict[str, Any]
    question_only: Scores
    members: list[Member] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, config: Config, learn: QuestionSet, test: QuestionSet) -> Plan:
        """Plan a comparison, or find one that was begun; nothing is written yet.

        Args:
            folder: New or empty, or a comparison.
            config: Settings of its runs.
            learn: The training set.
            test: The test set.
        Returns:
            The plan, with the runs that were begun.
        Raises:
            RunError: The folder holds something else, or a comparison of something else.
        """
        blind = QuestionOnly.learn(learn)
        scores = score((question.answer, blind(question.text)) for question in test.questions)
        plan = cls(folder, _in_common(config, learn, test), scores)
        plan._read()
        return plan

    def add(self, methods: Mapping[str, dict[str, str]], seeds: Iterable[int]) -> list[Member]:
        """Add the runs that it does not have yet.

        Args:
            methods: Sources by names.
            seeds: One run of each method for each.
        Returns:
            The runs of these methods and seeds, old and new.
        Raises:
            RunError: A run is done of which the method has changed since.
        """
        for member in self.members:
            now = methods.get(member.method, member.source)
            if member.measured and member.source != now:
                raise RunError(
                    f"{self.folder / member.name}: was trained with '{member.method}' of {origin(member.source)}, "
                    f"it is now of {origin(now)}. Remove this folder to train it anew, or choose another --out."
                )
        known = {member.name: member for member in self.members}
        asked = [Member(name, seed, source) for seed in seeds for name, source in methods.items()]
        for member in asked:
            known.setdefault(member.name, member).source = member.source
        self.members = list(known.values())
        return [known[member.name] for member in asked]

    def save(self, summary: Mapping[str, Any]) -> None:
        """Write compare.json.

        Args:
            summary: The table.
        """
        about = {"version": VERSION, **self.common, "question_only": self.question_only.parts(), "summary": summary}
        runs = [member.to_dict() for member in self.members]
        write_json(self.folder / FILE, {**about, "not_loaded": self.not_loaded, "runs": runs})

    @property
    def not_loaded(self) -> list[str]:
        """The plug-ins that are installed but do not load, with the reasons."""
        return [brief(str(failure)) for failure in mmm_fusion.failures()]

    @contextmanager
    def claimed(self) -> Iterator[tuple[int, ...]]:
        """Make the folder, keep every other comparison out of it, and see how far it is now.

        Yields:
            Descriptors for the processes of the runs: the folder is taken until all who have them are gone.
        Raises:
            RunError: Another comparison has it, or had it since `open` and left what this one cannot go on with.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock for a folder
            self._read()
            yield ()
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.folder}: another process compares there. Wait for it, or choose another --out."
                ) from error
            self._read()
            yield (descriptor,)
        finally:
            os.close(descriptor)

    def look_at(self, member: Member) -> None:
        """See whether a run is done: it is when its folder says so.

        Args:
            member: The run.
        Raises:
            RunError: What its folder says is damaged.
        """
        path = self.folder / member.name / RESULT
        if path.exists():
            member.measured, member.failure = _measured(path), None

    def _read(self) -> None:
        """Take over the runs of compare.json, if it is there."""
        self.members = []
        path = self.folder / FILE
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise RunError(
                    f"{self.folder}: a new or empty folder was expected, or a comparison. Choose another --out."
                )
            return
        old = read_json(path)
        if old.get("version") != VERSION:
            raise RunError(f"{path}: version {VERSION} was expected, got {old.get('version')}. Choose another --out.")
        try:
            _same(self.folder, {name: old[name] for name in self.common}, self.common)
            runs = [Member(each["method"], each["seed"], each["source"], None, each["failure"]) for each in old["runs"]]
            for member in runs:
                if not re.fullmatch(r"\w+-seed-?\d+", member.name):  # it is a folder's name
                    raise ValueError(member.name)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error!r}. Restore it, or choose another --out.") from error
        for member in runs:
            self.look_at(member)
        self.members = runs


def brief(text: str) -> str:
    """A reason in one line, not too long for a table or a page; the log has the whole of it."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _measured(path: Path) -> dict[str, Any]:
    """What a run wrote when it was done."""
    found = read_json(path)
    try:
        numbers = {**found["accuracy"], **found}
        wrong = [each.name for each in COLUMNS if not isinstance(numbers[each.name], float | int | None)]
        wrong += [name for name in ("cpu", "threads") if name not in found["machine"]]
    except (KeyError, TypeError) as error:
        wrong = [str(error)]
    if wrong:
        raise RunError(f"{path}: damaged: {', '.join(wrong)}. Remove {path.parent} to train it anew.")
    return found


def _in_common(config: Config, learn: QuestionSet, test: QuestionSet) -> dict[str, Any]:
    settings = config.to_dict()
    del settings["model"]["fusion"], settings["train"]["seed"]
    return {
        "settings": settings,
        "data": {"train": _about(learn), "test": _about(test)},
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _about(data: QuestionSet) -> dict[str, Any]:
    counts = {"pictures": len(data.pictures), "questions": sum(1 for _ in data.questions)}
    return {"name": data.name, **counts, "fingerprint": data.fingerprint()}


def _same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    differing = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise RunError(
            f"{folder}: holds a comparison with other settings: {'; '.join(differing)}. "
            "Use those of the first time, or choose another --out."
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by their dotted names; settings go by the names that their flags have."""
    if not isinstance(value, Mapping) or not value:
        return {name.removeprefix("settings."): value}
    return {
        inner: each
        for key, part in value.items()
        for inner, each in _flat(part, f"{name}.{key}" if name else key).items()
    }
