"""Starts a process for one run of a comparison, listens to it, and ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-P", "-m", "mmm_train.comparison")
NO_MEMORY = " The system may have run out of memory: lower train.batch."


class Process:
    """The process of one run.

    Args:
        job: What it is told to do.
        log: Takes what it prints.
    """

    def __init__(self, job: dict[str, Any], log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
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

    def stop(self) -> None:
        """Let it save and end."""
        with suppress(BrokenPipeError):
            self.input.close()
        for _ in self.output:  # it would wait for a reader
            pass
        self.output.close()
        self.process.wait()

    def _reason(self, status: int) -> str:
        if status < 0:
            name = signal.Signals(-status).name
            return f"ended by {name}.{NO_MEMORY if name == 'SIGKILL' else ''}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with status {status}."


@contextmanager
def started(job: dict[str, Any], log: Path) -> Iterator[Process]:
    """A process that does not outlive the block: it saves and stops at the end; a second Ctrl-C kills it.

    Args:
        job: What it is told to do.
        log: Takes what it prints; removed if that is nothing.
    Yields:
        The process.
    """
    process = Process(job, log)
    try:
        yield process
    finally:
        try:
            process.stop()
        finally:
            process.process.kill()
            if not log.stat().st_size:
                log.unlink()
