"""The numbers of a comparison, method by method: the mean over the seeds, the smallest and the largest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mmm_train.comparison.plan import Member, Plan

ACCURACIES = ("all", "yes_no", "open")
QUESTION_ONLY = "question only"


class Spread(NamedTuple):
    """One number of a method, over its seeds.

    Attributes:
        mean: Of all runs that have the number.
        min: The smallest.
        max: The largest.
        runs: How many there are.
    """

    mean: float
    min: float
    max: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of some values; None where there are none."""
        found = [value for value in values if value is not None]
        return cls(statistics.fmean(found), min(found), max(found), len(found)) if found else None

    @property
    def reach(self) -> float:
        """How far the farthest run is from the mean."""
        return max(self.max - self.mean, self.mean - self.min)


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        name: In compare.json.
        heading: In the table.
        unit: Of the numbers in the table.
        digits: Behind the point.
        scale: From compare.json's unit to the table's.
        brief: Whether the terminal has room for it.
        meaning: What it is and how it is measured.
    """

    name: str
    heading: str
    unit: str
    digits: int
    scale: float
    brief: bool
    meaning: str

    def write(self, value: float) -> str:
        """A number as the table has it."""
        return f"{value * self.scale:,.{self.digits}f}"

    def differs(self, spread: Spread) -> bool:
        """Whether the runs differ in what the table shows."""
        return self.write(spread.min) != self.write(spread.max)


ALL = "Right answers to the test questions, after the last epoch."
YES_NO = "The same for the questions whose answer is yes or no."
OPEN = "The same for all other questions."
PARAMETERS = "Of the whole model."
FUSION = "Those of the fusion method alone."
TRAINING = "Pictures a second in training, with all their questions: the median over the steps."
TOKENS = "What the Mamba layers read for one question before its answer, asked alone: the median over test questions."
ONCE = "Those of the tokens that stand before the question: they are the same for every question about the picture."
MEMORY = (
    "The most that the steps before the first evaluation needed. On a CPU that of the whole process, of which Python "
    "and torch are a large part; on a GPU that of torch's tensors there."
)
ANSWER = "Time to write an answer, in batches of 100 pictures with all their questions, without reading the files."
SINGLE = "Time to answer one question about one picture: the median over pictures."
COLUMNS = (
    Column("all", "all", "%", 1, 100, True, ALL),
    Column("yes_no", "yes/no", "%", 1, 100, True, YES_NO),
    Column("open", "open", "%", 1, 100, True, OPEN),
    Column("parameters", "parameters", "", 0, 1, False, PARAMETERS),
    Column("fusion_parameters", "fusion", "parameters", 0, 1, False, FUSION),
    Column("images_per_second", "training", "images/s", 0, 1, True, TRAINING),
    Column("tokens", "tokens", "", 0, 1, True, TOKENS),
    Column("tokens_once", "once", "tokens", 0, 1, False, ONCE),
    Column("peak_memory", "memory", "MiB", 0, 2**-20, True, MEMORY),
    Column("ms_per_answer", "answer", "ms", 2, 1, True, ANSWER),
    Column("ms_single", "single", "ms", 1, 1, True, SINGLE),
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: Method, or question only.
        values: By the names of the columns.
        failures: Why runs failed, by their seeds.
        open: Seeds whose runs are not done.
    """

    name: str
    values: dict[str, Spread | None]
    failures: dict[int, str]
    open: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; its folder holds compare.json, compare.html and compare.png.

    Args:
        plan: The runs.
        rows: The table: first the predictor without pictures, then the methods, the most accurate first.
    """

    plan: Plan
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The methods of which a run failed."""
        return tuple(row for row in self.rows if row.failures)

    @property
    def seeds(self) -> int:
        """The most runs that a method has in the table."""
        return max((value.runs for row in self.rows for value in row.values.values() if value), default=1)


def summarise(plan: Plan) -> Comparison:
    """Put the runs together.

    Args:
        plan: The runs.
    Returns:
        The table.
    """
    blind = plan.question_only.parts()
    by_method: dict[str, list[Member]] = {}
    for member in plan.members:
        by_method.setdefault(member.method, []).append(member)
    methods = [_row(name, members) for name, members in by_method.items()]
    deciding = "all" if blind["open"] is None else "open"
    methods.sort(key=lambda row: -(value.mean if (value := row.values[deciding]) else -1))
    first = Row(QUESTION_ONLY, {name: Spread.of([value]) for name, value in blind.items()}, {})
    return Comparison(plan, (first, *methods))


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The rows as plain values, by their names."""
    return {row.name: {name: value and value._asdict() for name, value in row.values.items()} for row in rows}


def _row(name: str, members: list[Member]) -> Row:
    done = [member.measured["accuracy"] | member.measured for member in members if member.measured]
    values = {column.name: Spread.of(each[column.name] for each in done) for column in COLUMNS}
    failures = {member.seed: member.failure for member in members if member.failure}
    return Row(name, values, failures, tuple(member.seed for member in members if member.status == "open"))
