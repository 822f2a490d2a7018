"""What a comparison shows in the terminal: a live line, a line for each run as it ends, and the table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import rich.box
import rich.progress
from rich.table import Table
from rich.text import Text

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
    for failure in plan.not_loaded:
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
        self.total, self.waiting = total, len(todo)
        self.width = max((len(_title(member)) for member in todo), default=0)
        self.running: dict[str, _Running] = {}
        self.steps = 0  # of the runs that ended here
        self.bars = rich.progress.Progress(
            rich.progress.TextColumn("run {task.fields[run]}/{task.fields[runs]}  {task.description}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("step {task.completed:,}/{task.fields[steps]:,}"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            expand=True,
            speed_estimate_period=600,
        )
        self.task = self.bars.add_task("", total=None, run=total - len(todo), runs=total, steps=0)

    def __enter__(self) -> Self:
        if self.waiting:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, member: Member) -> None:
        """A run begins."""
        self.waiting -= 1
        self.running[member.name] = _Running(_title(member), time.perf_counter())
        names = ", ".join(each.title for each in self.running.values())
        run = self.total - self.waiting
        self.bars.update(self.task, description=names if len(self.running) < 3 else "", run=run)

    def step(self, member: Member, step: int, steps: int) -> None:
        """A step of it is done.

        Args:
            member: The run.
            step: How many are.
            steps: Of how many.
        """
        run = self.running[member.name]
        if run.first is None:
            run.first = step
        run.now = step - run.first
        done = self.steps + sum(each.now for each in self.running.values())
        left = sum(steps - (each.first or 0) - each.now for each in self.running.values()) + steps * self.waiting
        self.bars.update(self.task, total=done + left, completed=done, steps=done + left)

    def end(self, member: Member) -> None:
        """A run is over."""
        run = self.running.pop(member.name)
        self.steps += run.now
        minutes, rest = divmod(round(time.perf_counter() - run.begun), 60)
        line = Text(f"{run.title:<{self.width}}  {minutes:>3}:{rest:02d}   ")
        if member.measured:
            found = member.measured["accuracy"]
            all_, yes_no, open_ = (_percent(found[name]) for name in ACCURACIES)
            line.append(f"right: {all_} of all, {yes_no} of yes/no, {open_} of open questions")
        else:
            line.append(f"failed: {member.failure}", style="red")
        self.console.print(line, soft_wrap=True)


@dataclass
class _Running:
    """A run that is under way: since when, and the step at which it began here and is now."""

    title: str
    begun: float
    first: int | None = None
    now: int = 0


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
