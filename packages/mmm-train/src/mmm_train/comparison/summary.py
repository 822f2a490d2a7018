"""The numbers of a comparison, method by method: the mean over the seeds, the smallest and the largest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mmm_train.comparison.plan import Member, Plan


class Spread(NamedTuple):
    """One number of a method, over its seeds."""

    mean: float
    min: float
    max: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of some values; None where there are none."""
        found = [value for value in values if value is not None]
        return cls(statistics.fmean(found), min(found), max(found), len(found)) if found else None


class Column(NamedTuple):
    """A column of the table: its heading, and how a number is written."""

    name: str
    heading: str
    form: str
    scale: float = 1.0

    def write(self, value: float) -> str:
        """A number as the table has it."""
        return self.form.format(value * self.scale)


ACCURACIES = ("all", "yes_no", "open")
COLUMNS = (
    Column("all", "all", "{:.1f} %", 100),
    Column("yes_no", "yes/no", "{:.1f} %", 100),
    Column("open", "open", "{:.1f} %", 100),
    Column("parameters", "parameters", "{:,.0f}"),
    Column("images_per_second", "images/s", "{:,.0f}"),
    Column("tokens", "tokens", "{:,.0f}"),
    Column("tokens_once", "once an image", "{:,.0f}"),
    Column("peak_memory", "memory, MiB", "{:,.0f}", 2**-20),
    Column("ms_per_answer", "ms/answer", "{:.2f}"),
    Column("ms_single", "ms, single", "{:.1f}"),
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: Method, or question only.
        values: By names of columns.
        failures: Reasons of the runs that failed, by seeds.
        open: Seeds that are not trained yet.
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
        rows: The table: first the predictor without pictures, then a row a method.
    """

    plan: Plan
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The methods of which a run failed."""
        return tuple(row for row in self.rows if row.failures)


def summarise(plan: Plan) -> Comparison:
    """Put the runs together.

    Args:
        plan: The runs.
    Returns:
        The table.
    """
    blind = {name: Spread.of([value]) for name, value in plan.question_only.parts().items()}
    rows = [Row("question only", blind, {})]
    by_method: dict[str, list[Member]] = {}
    for member in plan.members:
        by_method.setdefault(member.method, []).append(member)
    rows += [_row(name, members) for name, members in by_method.items()]
    return Comparison(plan, tuple(rows))


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The rows as plain values."""
    return {row.name: {name: value and value._asdict() for name, value in row.values.items()} for row in rows}


def _row(name: str, members: list[Member]) -> Row:
    done = [member.measured for member in members if member.measured]
    values = {}
    for column in COLUMNS:
        found = [(each["accuracy"] or {} if column.name in ACCURACIES else each).get(column.name) for each in done]
        values[column.name] = Spread.of(found)
    failures = {member.seed: member.failure for member in members if member.failure}
    return Row(name, values, failures, tuple(member.seed for member in members if member.status == "open"))
