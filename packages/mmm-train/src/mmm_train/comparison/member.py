"""One run of a comparison, in a process of its own: `python -m mmm_train.comparison`, started by `compare`.

The first line of standard input is the job, as JSON. The input stays open; when it closes, whoever started this is
gone or wants it to stop, and the training saves and ends. Events go to standard output, one JSON object a line; all
else that is printed, by plug-ins too, goes to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from mmm_block.files import write_json
from mmm_block.origins import source
from mmm_train.comparison.measure import measure, peak_memory
from mmm_train.config import Config
from mmm_train.errors import Interrupted, RunError
from mmm_train.methods import load_plugin
from mmm_train.run import Run
from mmm_train.terminal import Progress, Terminal
from mmm_train.training import resume, train

if TYPE_CHECKING:
    from mmm_train.evaluate import Scores
    from mmm_train.loop import Trainer

RESULT = "measured.json"
"""In a run folder: what was measured. It is there when the run is done."""
Tell = Callable[..., None]


def main() -> int:
    """Do the job.

    Returns:
        The exit status: 0, or 1 after an error, or 130 after a stop.
    """
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**event: object) -> None:
        with suppress(BrokenPipeError):  # whoever listened is gone; the end of the input says so as well
            os.write(events, f"{json.dumps(event)}\n".encode())

    job = json.loads(sys.stdin.readline())
    stopped = threading.Event()
    threading.Thread(target=_stop_at_end_of_input, args=(stopped,), daemon=True).start()
    sys.path[:] = job["path"]  # a method finds what it found when it was checked
    torch.set_num_threads(job["threads"])
    try:
        if job["plugin"]:
            load_plugin(Path(job["plugin"]))
        work(Path(job["folder"]), Config.from_dict(job["settings"]), job["source"], tell)
    except BaseException as error:  # a plug-in may raise anything; it is told, and the whole of it is in the log
        if stopped.is_set() and isinstance(error, (Interrupted, KeyboardInterrupt)):
            return 130
        traceback.print_exc()
        tell(event="failed", reason=reason(error))
        return 1
    return 0


def work(folder: Path, config: Config, origin: dict[str, str], tell: Tell) -> None:
    """Train, or go on with it, and measure.

    Args:
        folder: The run folder.
        config: All settings.
        origin: Where the fusion method must come from.
        tell: Called with each event.
    Raises:
        RunError: It comes from elsewhere, or its file is not what it was.
    """
    name = config.model.fusion
    if source(name) not in ({}, origin):  # one that is not registered is told of below
        raise RunError(f"fusion method '{name}' was changed while it was compared. Compare again.")
    terminal = Told(tell)
    if (folder / "training.safetensors").exists() and Run.open(folder).source == origin:
        run = resume(folder, terminal)
    else:
        if folder.exists():  # a crash before the first checkpoint, or another method of this name
            shutil.rmtree(folder)
        run = train(config, folder, terminal)
    tell(event="measuring")
    write_json(folder / RESULT, measure(run))


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    own = type(error).__module__.partition(".")[0] in ("mmm_train", "mmm_fusion")
    return text if own and text else f"{type(error).__name__}: {text}".removesuffix(": ")


class Told(Terminal):
    """Shows nothing, and tells how far the training is."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(Console(quiet=True))
        self.tell = tell

    @contextmanager
    def progress(self, trainer: Trainer) -> Iterator[Progress]:
        """Tell each step."""
        yield ToldProgress(self.tell, trainer)


class ToldProgress(Progress):
    """Tells each step and evaluation, and records the memory that the steps before the first evaluation needed."""

    def __init__(self, tell: Tell, trainer: Trainer) -> None:
        self.tell, self.trainer = tell, trainer
        self.peak: int | None = None
        self.measured = False
        tell(event="step", step=trainer.place.step, steps=trainer.steps)

    def step(self, step: int, epoch: int, loss: float, speed: float) -> None:
        """See `Progress.step`."""
        if not self.measured:
            self.peak = peak_memory(self.trainer.device)
        self.tell(event="step", step=step, steps=self.trainer.steps)

    def evaluated(self, epoch: int, scores: Scores) -> None:
        """See `Progress.evaluated`."""
        if not self.measured and self.peak is not None:
            self.trainer.run.record(step=self.trainer.place.step, epoch=epoch, peak_memory=self.peak)
        self.measured = True


def _stop_at_end_of_input(stopped: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin, whose lock Python needs to end
        pass
    stopped.set()
    signal.raise_signal(signal.SIGTERM)
