"""Starts the processes of a comparison, one a run, listens to them, and ends them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

COMMAND = (sys.executable, "-P", "-m", "mmm_train.comparison")
NO_MEMORY = " The system may have run out of memory: lower --jobs, or train.batch with another --out."


class Process:
    """The process of one run.

    Args:
        job: What it is told to do.
        log: Takes what it prints.
        keep: Descriptors that stay open until it ends.
    """

    def __init__(self, job: dict[str, Any], log: Path, keep: Sequence[int] = ()) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                pass_fds=keep,
                process_group=0,  # Ctrl-C in the terminal reaches this process alone, which then ends that one
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        with suppress(BrokenPipeError):  # it has ended already; `events` says why
            self.input.write(json.dumps(job) + "\n")
            self.input.flush()

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What it tells, until it ends.

        Yields:
            The event's name, and what belongs to it. The last is `failed` if the job is not done.
        """
        failed = False
        for line in self.output:
            values = json.loads(line)
            event = values.pop("event")
            failed = failed or event == "failed"
            yield event, values
        status = self.process.wait()
        if status != 0 and not failed:
            yield "failed", {"reason": self._reason(status)}

    def ask_to_stop(self) -> None:
        """Let it save and end."""
        with suppress(BrokenPipeError):
            self.input.close()

    def _reason(self, status: int) -> str:
        if status < 0:
            name = signal.Signals(-status).name
            return f"ended by {name}.{NO_MEMORY if name == 'SIGKILL' else ''}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with status {status}."


class Processes:
    """Processes that run at once and do not outlive the `with` block.

    At its end they are asked to stop, and waited for; a second Ctrl-C kills them.

    Args:
        keep: Descriptors that stay open until the last of them ends.
    """

    def __init__(self, keep: Sequence[int] = ()) -> None:
        self.keep = keep
        self.running: dict[Process, threading.Thread] = {}
        self.queue: SimpleQueue[tuple[Process, str, dict[str, Any]]] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self.running:
                process.ask_to_stop()
            for thread in self.running.values():
                thread.join()
        finally:
            for process in list(self.running):
                process.process.kill()
                self._clear(process)

    def start(self, job: dict[str, Any], log: Path) -> Process:
        """Start one.

        Args:
            job: What it is told to do.
            log: Takes what it prints; removed at its end if that is nothing.
        Returns:
            The process.
        """
        process = Process(job, log, self.keep)
        self.running[process] = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self.running[process].start()
        return process

    def next_event(self) -> tuple[Process, str, dict[str, Any]]:
        """Wait for what any of them tells.

        Returns:
            The process, the event's name, and what belongs to it. The last event of each is `ended`.
        """
        process, event, values = self.queue.get()
        if event == "ended":
            self.running[process].join()
            process.ask_to_stop()
            self._clear(process)
        return process, event, values

    def _listen(self, process: Process) -> None:
        try:
            for event, values in process.events():
                self.queue.put((process, event, values))
        finally:
            self.queue.put((process, "ended", {}))

    def _clear(self, process: Process) -> None:
        del self.running[process]
        process.output.close()
        if not process.log.stat().st_size:
            process.log.unlink()
