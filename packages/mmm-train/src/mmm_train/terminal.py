"""What a run shows in the terminal: progress while it works, tables when it is done."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmm_train.evaluate import Scores

if TYPE_CHECKING:
    from mmm_train.loop import Trainer

SMOOTH = 0.9
"""Weight of the past in the loss and the speed that are shown."""


def printable(text: str) -> str:
    """Text that a terminal can write, and does not obey.

    Args:
        text: Any, from a file or a stranger's error.
    Returns:
        The text with an escape for each control character, except the ends of lines, and for each half of a character.
    """
    hidden = {each for each in text if each != "\n" and unicodedata.category(each) in ("Cc", "Cs")}
    return text.translate({ord(each): each.encode("unicode_escape").decode() for each in hidden})


class Terminal:
    """Shows a run on a console.

    Args:
        console: By default standard output; `Console(quiet=True)` shows nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Callable[[int], None]]:
        """Show a bar while some items are gone through.

        Args:
            total: Their number.
            text: What happens to them.
        Yields:
            A function to call with the number of items that were done since the last call.
        """
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with self._bars(*columns) as bars:
            task = bars.add_task(text, total=total)
            yield lambda done: bars.advance(task, done)

    @contextmanager
    def progress(self, trainer: Trainer) -> Iterator[Progress]:
        """Show a training while it lasts.

        Args:
            trainer: The training.
        Yields:
            What the loop reports to.
        """
        columns = (
            rich.progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("step {task.completed:,}/{task.total:,}"),
            rich.progress.TextColumn("loss {task.fields[loss]:.3f}"),
            rich.progress.TextColumn("{task.fields[speed]:.0f} images/s"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("left"),
        )
        with self._bars(*columns, expand=True, speed_estimate_period=300) as bars:
            yield Progress(bars, trainer)

    def scores(self, rows: Mapping[str, Scores]) -> None:
        """Print a table of accuracies.

        Args:
            rows: Scores by what reached them.
        """
        table = Table(title="Accuracy on the test pictures", title_justify="left")
        table.add_column()
        for heading in ("all", "yes/no", "open"):
            table.add_column(heading, justify="right")
        for name, scores in rows.items():
            table.add_row(Text(name), str(scores.all), str(scores.yes_no), str(scores.open))
        table.add_section()
        asked = next(iter(rows.values()))
        counts = (f"{share.asked:,}" for share in (asked.all, asked.yes_no, asked.open))
        table.add_row("number of questions", *counts)
        self.console.print(table)

    def answers(self, found: Iterable[tuple[str, float]]) -> None:
        """Print answers with their probabilities.

        Args:
            found: Pairs of them.
        """
        table = Table()
        table.add_column("answer")
        table.add_column("probability", justify="right")
        for answer, probability in found:
            table.add_row(Text(printable(answer)), f"{100 * probability:.1f} %")
        self.console.print(table)

    def _bars(self, *columns: rich.progress.ProgressColumn, **options: Any) -> rich.progress.Progress:
        hidden = not self.console.is_terminal  # a log file has no use for them
        return rich.progress.Progress(*columns, console=self.console, transient=True, disable=hidden, **options)


class Progress:
    """The live line of a training, with a line above it for each evaluation.

    Args:
        bars: What draws it.
        trainer: The training.
    """

    def __init__(self, bars: rich.progress.Progress, trainer: Trainer) -> None:
        self.bars = bars
        self.loss: float | None = None
        self.speed: float | None = None
        self.task = bars.add_task(
            "",
            total=trainer.steps,
            completed=trainer.place.step,
            epoch=trainer.place.epoch + 1,
            epochs=trainer.config.epochs,
            loss=float("nan"),
            speed=0.0,
        )

    def step(self, step: int, epoch: int, loss: float, speed: float) -> None:
        """One step is done.

        Args:
            step: How many are.
            epoch: Its epoch, from 1.
            loss: Its loss.
            speed: Images a second.
        """
        self.loss = loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * loss
        self.speed = speed if self.speed is None else SMOOTH * self.speed + (1 - SMOOTH) * speed
        self.bars.update(self.task, completed=step, epoch=epoch, loss=self.loss, speed=self.speed)

    def evaluated(self, epoch: int, scores: Scores) -> None:
        """The model was evaluated after an epoch.

        Args:
            epoch: From 1.
            scores: How it did.
        """
        loss = "" if self.loss is None else f"   loss {self.loss:.3f}"
        self.bars.console.print(
            Text(
                f"epoch {epoch:>3}{loss}   right: {scores.all} of all, {scores.yes_no} of yes/no, "
                f"{scores.open} of open questions"
            ),
            soft_wrap=True,
        )
