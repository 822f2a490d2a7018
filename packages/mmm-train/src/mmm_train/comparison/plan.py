"""What a comparison trains, and compare.json, which says how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    source: str = ""
    measured: dict[str, Any] | None = None
    failure: str | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.method}-seed{self.seed}"

    @property
    def status(self) -> str:
        """done, failed or open."""
        return "done" if self.measured else "failed" if self.failure else "open"


@dataclass
class Plan:
    """A comparison in its folder.

    Args:
        folder: Where it is.
        about: What all its runs have in common: settings, data, packages.
        question_only: Scores of the predictor without pictures.
        members: Its runs, in the order of training.
    """

    folder: Path
    about: dict[str, Any]
    question_only: Scores
    members: list[Member] = field(default_factory=list)

    def add(self, methods: Mapping[str, str], seeds: Iterable[int]) -> list[Member]:
        """Add the runs that it does not have yet.

        Args:
            methods: Sources by names.
            seeds: One run each.
        Returns:
            The runs of these methods and seeds, old and new.
        """
        known = {(member.method, member.seed): member for member in self.members}
        wanted = [
            known.get((name, seed)) or Member(name, seed, source) for seed in seeds for name, source in methods.items()
        ]
        self.members += [member for member in wanted if (member.method, member.seed) not in known]
        return wanted

    def load(self) -> None:
        """Read what compare.json and the run folders say is done.

        Raises:
            RunError: The folder holds something else, or a comparison of something else.
        """
        path = self.folder / FILE
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise RunError(
                    f"{self.folder}: a new or empty folder was expected, or a comparison. Choose another --out."
                )
            return
        old = read_json(path)
        if old.get("version") != VERSION:
            raise RunError(f"{path}: version {VERSION} was expected, got {old.get('version')}.")
        _same(self.folder, {name: old.get(name) for name in self.about}, self.about)
        for each in old["runs"]:
            member = Member(each["method"], each["seed"], each["source"], failure=each["failure"])
            result = self.folder / member.name / RESULT
            if result.exists():
                member.measured, member.failure = read_json(result), None
            self.members.append(member)

    def save(self, summary: Mapping[str, Any]) -> None:
        """Write compare.json."""
        runs = [
            {"method": m.method, "seed": m.seed, "source": m.source, "folder": m.name, "status": m.status}
            | {"failure": m.failure, "measured": m.measured}
            for m in self.members
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"version": VERSION, **self.about, "question_only": self.question_only.parts()}
        write_json(self.folder / FILE, about | {"summary": summary, "runs": runs})


def in_common(config: Config, learn: QuestionSet, test: QuestionSet) -> dict[str, Any]:
    """What all runs of a comparison have in common."""
    settings = config.to_dict()
    for part, name in (("model", "fusion"), ("train", "seed")):
        del settings[part][name]
    data = {
        name: {"name": each.name, "pictures": len(each.pictures), "questions": sum(1 for _ in each.questions)}
        | {"fingerprint": each.fingerprint()}
        for name, each in (("train", learn), ("test", test))
    }
    return {"settings": settings, "data": data, "packages": {name: metadata.version(name) for name in PACKAGES}}


def blind_scores(learn: QuestionSet, test: QuestionSet) -> Scores:
    """How often a predictor is right that sees no picture."""
    blind = QuestionOnly.learn(learn)
    return score((question.answer, blind(question.text)) for question in test.questions)


def member_config(config: Config, member: Member) -> Config:
    """The settings of one run."""
    return replace(
        config,
        model=replace(config.model, fusion=member.method),
        train=replace(config.train, seed=member.seed),
    )


def _same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    differing = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise RunError(
            f"{folder}: holds a comparison of something else: {'; '.join(differing)}. "
            "Use what it was begun with, or choose another --out."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names; the part of them that is called settings needs no prefix."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, each in value.items():
        inner = name if not prefix or prefix == "settings" else f"{prefix}.{name}"
        found |= _flat(each, inner)
    return found
