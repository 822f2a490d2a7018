"""What a comparison shows in the terminal: a live line, a line for each run as it ends, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import rich.box
import rich.progress
from rich.table import Table
from rich.text import Text

import mmm_fusion
from mmm_train.comparison.summary import ACCURACIES, COLUMNS, Column, Comparison, Row

if TYPE_CHECKING:
    from mmm_train.comparison.plan import Member, Plan
    from mmm_train.terminal import Terminal


def introduce(plan: Plan, wanted: Sequence[Member], terminal: Terminal) -> None:
    """Print what will be compared.

    Args:
        plan: The comparison.
        wanted: Its runs that were asked for.
        terminal: Where to print.
    """
    for name, label in (("train", "learn"), ("test", "test")):
        data = plan.common["data"][name]
        terminal.say(f"{label:<8}{data['name']}: {data['pictures']:,} pictures, {data['questions']:,} questions")
    methods, seeds = len({member.method for member in wanted}), len({member.seed for member in wanted})
    done = sum(member.status == "done" for member in wanted)
    epochs = plan.common["settings"]["train"]["epochs"]
    left = f"; {done} of {len(wanted)} runs are done" if done else ""
    terminal.say(f"train   {_count(methods, 'method')}, {_count(seeds, 'seed')}, {_count(epochs, 'epoch')}{left}")
    terminal.say(f"folder  {plan.folder}")
    for failure in mmm_fusion.failures():
        terminal.say(f"not loaded: {failure}")


class Board:
    """The live line of a comparison, with a line above it for each run that ended.

    Args:
        terminal: Where to show it.
        total: Number of all runs.
        todo: Those that are still to train.
    """

    def __init__(self, terminal: Terminal, total: int, todo: Sequence[Member]) -> None:
        self.console = terminal.console
        self.total, self.left = total, len(todo)
        self.width = max((len(_title(member)) for member in todo), default=0)
        self.steps = 0  # of the runs that ended here
        self.begun_at: int | None = None  # the step at which the present run began here
        self.now = 0
        self.bars = rich.progress.Progress(
            rich.progress.TextColumn("run {task.fields[run]}/{task.fields[runs]}  {task.description}"),
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
        self.task = self.bars.add_task("", total=None, run=total - len(todo) + 1, runs=total, step=0, steps=0)

    def __enter__(self) -> Self:
        if self.left:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, member: Member) -> None:
        """A run begins."""
        self.begun_at = None
        self.bars.update(self.task, description=_title(member), run=self.total - self.left + 1, step=0)

    def step(self, step: int, steps: int) -> None:
        """A step of it is done.

        Args:
            step: How many are.
            steps: Of how many.
        """
        if self.begun_at is None:
            self.begun_at = step
        self.now = step - self.begun_at
        total = self.steps + steps - self.begun_at + steps * (self.left - 1)
        self.bars.update(self.task, total=total, completed=self.steps + self.now, step=step, steps=steps)

    def end(self, member: Member, seconds: float) -> None:
        """A run is over.

        Args:
            member: The run.
            seconds: How long it took.
        """
        self.left -= 1
        self.steps += self.now
        self.now = 0
        minutes, rest = divmod(round(seconds), 60)
        line = Text(f"{_title(member):<{self.width}}  {minutes:>3}:{rest:02d}   ")
        if member.measured:
            found = member.measured["accuracy"]
            all_, yes_no, open_ = (_percent(found[name]) for name in ACCURACIES)
            line.append(f"right: {all_} of all, {yes_no} of yes/no, {open_} of open questions")
        else:
            line.append(f"failed: {member.failure}", style="red")
        self.console.print(line, soft_wrap=True)


def show(comparison: Comparison, terminal: Terminal) -> None:
    """Print the table, what failed, and where the report is.

    Args:
        comparison: The result.
        terminal: Where to print.
    """
    shown = [column for column in COLUMNS if column.brief]
    box, title = rich.box.SIMPLE_HEAD, "Right answers, and what they cost"
    table = Table(title=title, title_justify="left", box=box, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column()
    for column in shown:
        table.add_column(f"{column.heading}\n{column.unit}", justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(Text(row.name), *(_cell(row, column) for column in shown))
    terminal.console.print(table)
    if comparison.seeds > 1:
        terminal.say(f"Means of {comparison.seeds} seeds; ±: how far the farthest seed is from the mean.")
    for row in comparison.failed:
        for seed, reason in row.failures.items():
            terminal.say(f"failed: {row.name} seed {seed}: {reason}")
    terminal.say(f"report: {comparison.plan.folder / 'compare.html'}")


def _cell(row: Row, column: Column) -> str:
    value = row.values.get(column.name)
    if value is None:
        return "–"
    return column.write(value.mean) + (f"\n±{column.write(value.reach)}" if column.differs(value) else "")


def _title(member: Member) -> str:
    return f"{member.method} seed {member.seed}"


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
