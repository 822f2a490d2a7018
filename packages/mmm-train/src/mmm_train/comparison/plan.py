"""What a comparison trains, and compare.json, which says how far it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mmm_train.checkpoint import read_json, write_json
from mmm_train.comparison.member import RESULT
from mmm_train.config import Config
from mmm_train.data import QuestionSet
from mmm_train.errors import RunError
from mmm_train.evaluate import QuestionOnly, Scores, score
from mmm_train.run import PACKAGES

VERSION = 1
"""Of compare.json."""
FILE = "compare.json"


@dataclass
class Member:
    """One run of a comparison.

    Args:
        method: Name of the fusion method.
        seed: Start of every random number.
        source: Distribution and version of the method, or its file.
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
        if (folder / FILE).exists():
            plan._read()
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: a new or empty folder was expected, or a comparison. Choose another --out.")
        return plan

    def add(self, methods: Mapping[str, dict[str, str]], seeds: Iterable[int]) -> list[Member]:
        """Add the runs that it does not have yet.

        Args:
            methods: Sources by names.
            seeds: One run of each method for each.
        Returns:
            The runs of these methods and seeds, old and new.
        """
        known = {member.name: member for member in self.members}
        asked = [Member(name, seed, source) for seed in seeds for name, source in methods.items()]
        self.members += [member for member in asked if member.name not in known]
        return [known.get(member.name, member) for member in asked]

    def save(self, summary: Mapping[str, Any]) -> None:
        """Write compare.json.

        Args:
            summary: The table.
        """
        about = {"version": VERSION, **self.common, "question_only": self.question_only.parts(), "summary": summary}
        write_json(self.folder / FILE, {**about, "runs": [member.to_dict() for member in self.members]})

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, and keep a second comparison out of it while this one lasts.

        Raises:
            RunError: There is one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock for a folder
            yield
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise RunError(
                f"{self.folder}: another process compares there. Wait for it, or choose another --out."
            ) from error
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        """Take over the runs of compare.json; a run is done when its folder says so."""
        path = self.folder / FILE
        old = read_json(path)
        if old.get("version") != VERSION:
            raise RunError(f"{path}: version {VERSION} was expected, got {old.get('version')}. Choose another --out.")
        try:
            _same(self.folder, {name: old[name] for name in self.common}, self.common)
            runs = [Member(each["method"], each["seed"], each["source"], None, each["failure"]) for each in old["runs"]]
        except (KeyError, TypeError) as error:
            raise RunError(f"{path}: damaged: {error!r}. Restore it, or choose another --out.") from error
        for member in runs:
            result = self.folder / member.name / RESULT
            if result.exists():
                member.measured, member.failure = read_json(result), None
        self.members = runs


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
