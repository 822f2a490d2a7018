"""A data set in memory: pictures by their paths, each with its questions and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmm_train.errors import DataError


@dataclass(frozen=True)
class Question:
    """A question about a picture, and its answer; or a caption: what is said of a picture unasked.

    Args:
        text: The question; empty for a caption.
        answer: The answer, or the caption, as `normal` has it.
    """

    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """A picture and the questions about it.

    Args:
        path: The file.
        questions: At least one.
    """

    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class QuestionSet:
    """Pictures with their questions.

    Args:
        name: What messages call it.
        pictures: In a fixed order.
    """

    name: str
    pictures: tuple[Picture, ...]

    @property
    def questions(self) -> Iterator[Question]:
        """Every question, picture by picture."""
        return (question for picture in self.pictures for question in picture.questions)

    def hold_out(self, part: float) -> tuple[QuestionSet, QuestionSet]:
        """Split by pictures. Their file names decide, whatever their order.

        Args:
            part: Part of the pictures that goes to the second set.
        Returns:
            The rest, and those held out: at least one picture each.
        Raises:
            DataError: There is only one picture.
        """
        if len(self.pictures) < 2:
            raise DataError(f"{self.name}: holding out needs 2 pictures or more, got 1. Give data.test.")
        ranked = sorted(self.pictures, key=lambda picture: _hash(picture.path.name))
        count = min(max(1, round(part * len(ranked))), len(ranked) - 1)
        held = set(ranked[:count])
        return (
            QuestionSet(self.name, tuple(p for p in self.pictures if p not in held)),
            QuestionSet(f"{self.name} (held out)", tuple(p for p in self.pictures if p in held)),
        )

    def fingerprint(self) -> str:
        """A hash of the file names, questions and answers.

        Returns:
            The same for the same data, wherever its folder lies.
        """
        lines = [
            repr((p.path.name, [(question.text, question.answer) for question in p.questions])) for p in self.pictures
        ]
        return _hash("\n".join(lines))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
