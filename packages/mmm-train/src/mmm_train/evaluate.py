"""How often the answers are right: of the model, and of a predictor that sees no picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mmm_train.answers import write_answers
from mmm_train.data import Examples, Picture, Question, QuestionSet, Tokenizer, batches

if TYPE_CHECKING:
    from mmm_block import MultiModalMamba

BATCH = 100
"""Pictures of a batch without gradients."""


class Answered(NamedTuple):
    """A question with the model's answer."""

    picture: Picture
    question: Question
    given: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the answer is the expected one."""
        return self.given == self.question.answer


class Share(NamedTuple):
    """Right answers out of a number of questions."""

    right: int
    asked: int

    @property
    def part(self) -> float | None:
        """Their quotient; None where nothing was asked."""
        return self.right / self.asked if self.asked else None

    def __str__(self) -> str:
        return "–" if self.part is None else f"{100 * self.part:.1f} %"


@dataclass(frozen=True)
class Scores:
    """Accuracy on all questions, on those answered by yes or no, and on the others.

    Args:
        all: Every question.
        yes_no: Questions whose expected answer is yes or no.
        open: All other questions.
    """

    all: Share
    yes_no: Share
    open: Share

    def parts(self) -> dict[str, float | None]:
        """The accuracies by name.

        Returns:
            Values from 0 to 1; None where there is no such question.
        """
        return {"all": self.all.part, "yes_no": self.yes_no.part, "open": self.open.part}


def score(pairs: Iterable[tuple[str, str]]) -> Scores:
    """Count right answers.

    Args:
        pairs: Expected and given answers.
    Returns:
        The scores.
    """
    counts = Counter((expected in ("yes", "no"), expected == given) for expected, given in pairs)
    yes_no, rest = (Share(counts[kind, True], counts[kind, True] + counts[kind, False]) for kind in (True, False))
    return Scores(Share(yes_no.right + rest.right, yes_no.asked + rest.asked), yes_no, rest)


class QuestionOnly:
    """Gives each question its most frequent answer of the training set: the best that sees no picture.

    A question that the training set does not have gets the most frequent answer of all.

    Args:
        best: The answer to each known question, in lower case.
        fallback: The answer to all others.
    """

    def __init__(self, best: Mapping[str, str], fallback: str) -> None:
        self.best, self.fallback = dict(best), fallback

    @classmethod
    def learn(cls, data: QuestionSet) -> QuestionOnly:
        """Count the answers of a training set.

        Args:
            data: The training set.
        Returns:
            The predictor.
        """
        by_question: dict[str, Counter[str]] = {}
        for question in data.questions:
            by_question.setdefault(question.text.lower(), Counter())[question.answer] += 1
        total = sum(by_question.values(), Counter[str]())
        return cls({text: _most(answers) for text, answers in by_question.items()}, _most(total))

    def __call__(self, question: str) -> str:
        """The answer to a question."""
        return self.best.get(question.lower(), self.fallback)


def _most(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0]  # of several, the one that came first


def answer_all(
    model: MultiModalMamba,
    examples: Examples,
    tokenizer: Tokenizer,
    longest: int,
    *,
    workers: int = 0,
    after_batch: Callable[[int], None] = lambda pictures: None,
) -> list[Answered]:
    """Let the model answer every question of a set.

    Args:
        model: The model; it is left in its mode of evaluation.
        examples: The set.
        tokenizer: Puts words together.
        longest: Tokens that an answer may have.
        workers: Processes that read pictures.
        after_batch: Called after each batch with its number of pictures.
    Returns:
        Every question in the order of the set, answered.
    """
    model.eval()
    asked = ((picture, question) for picture in examples.data.pictures for question in picture.questions)
    found = []
    for batch in batches(examples, BATCH, workers=workers):
        for (answer,) in write_answers(model, batch, tokenizer, longest=longest):
            found.append(Answered(*next(asked), *answer))
        after_batch(len(batch.images))
    return found
