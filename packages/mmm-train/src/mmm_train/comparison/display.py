"""What a comparison shows in the terminal: a live line, a line for each run as it ends, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import rich.progress
from rich.table import Table
from rich.text import Text

from mmm_train.comparison.summary import COLUMNS, Comparison, Row

if TYPE_CHECKING:
    from mmm_train.comparison.plan import Member
    from mmm_train.terminal import Terminal


class Board:
    """The live line of a comparison, with a line above it for each run that ended.

    Args:
        terminal: Where to show it.
        total: Number of all runs.
        todo: Those that are still to train.
    """

    def __init__(self, terminal: Terminal, total: int, todo: Sequence[Member]) -> None:
        self.console = terminal.console
        self.done, self.total = total - len(todo), total
        self.left = len(todo)
        self.width = max((len(f"{member.method} seed {member.seed}") for member in todo), default=0)
        self.bars = rich.progress.Progress(
            rich.progress.TextColumn("run {task.fields[run]}/{task.fields[runs]}  {task.fields[name]}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("step {task.fields[step]:,}/{task.fields[steps]:,}"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            expand=True,
            speed_estimate_period=600,
        )
        self.task = self.bars.add_task("", total=None, run=0, runs=total, name="", step=0, steps=0)
        self.before = 0
        self.steps = 0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, member: Member) -> None:
        """A run begins."""
        self.name = f"{member.method} seed {member.seed}"
        self.bars.update(self.task, run=self.total - self.left + 1, name=self.name, step=0)

    def step(self, step: int, steps: int) -> None:
        """A step of it is done.

        Args:
            step: How many are.
            steps: Of how many.
        """
        self.steps = steps
        self.bars.update(
            self.task,
            total=steps * (self.left + self.before),
            completed=self.before * steps + step,
            step=step,
            steps=steps,
        )

    def end(self, member: Member, seconds: float) -> None:
        """A run is over."""
        self.left -= 1
        self.before += 1
        line = Text(f"{self.name:<{self.width}}   ")
        if member.measured is None:
            line.append(f"failed: {member.failure}", style="red")
        else:
            found = [
                column.write(value) if (value := member.measured["accuracy"].get(column.name)) is not None else "–"
                for column in COLUMNS[:3]
            ]
            line.append(f"right: {found[0]} of all, {found[1]} of yes/no, {found[2]} of open questions")
        minutes, rest = divmod(round(seconds), 60)
        line.append(f"   {minutes}:{rest:02d}", style="dim")
        self.console.print(line, soft_wrap=True)


def show(comparison: Comparison, terminal: Terminal) -> None:
    """Print the table, and where the report is."""
    table = Table(title="Comparison", title_justify="left")
    table.add_column()
    for column in COLUMNS:
        table.add_column(column.heading, justify="right")
    for row in comparison.rows:
        table.add_row(Text(row.name), *(_cell(row, column.name) for column in COLUMNS))
    terminal.console.print(table)
    terminal.say(f"report: {comparison.plan.folder / 'compare.html'}")


def _cell(row: Row, name: str) -> str:
    column = next(each for each in COLUMNS if each.name == name)
    value = row.values.get(name)
    return "–" if value is None else column.write(value.mean)
