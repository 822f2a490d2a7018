"""What the benchmarks share: runs that take turns, their medians, and figures beside the limits asked of them."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_core import native_library

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 7


class Timing(NamedTuple):
    """The median seconds of a run, and how far apart its quartiles are, as a part of the median."""

    median: float
    spread: float


def measure(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS, calls: int = 1) -> dict[str, Timing]:
    """Time each run; they take turns, so that a busy moment of the machine meets them all.

    A turn begins with a call that is not counted: the next finds caches and heap as this run leaves them, not as the
    one before it did. What a call returns is kept until the next has returned, as by the loop of a program.

    Args:
        runs: What to time, by name.
        rounds: Turns.
        calls: Of each run in one turn; more than one where a call is too short for the clock.
    Returns:
        The timing of one call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            kept = run()
            start = time.perf_counter()
            for _ in range(calls):
                kept = run()
            seconds[name].append((time.perf_counter() - start) / calls)
            del kept
    return {name: timing(values) for name, values in seconds.items()}


def keep_memory() -> None:
    """Let the C library keep the memory that it is given back, until the process ends."""
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # the names of malloc.h
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(mmap_max, 0)


def timing(seconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4)
    return Timing(median, (high - low) / median)


def setting() -> str:
    """The threads and the instruction set that the figures hold for."""
    return f"{torch.get_num_threads()} threads, {native_library.ISA}"


def print_timings(title: str, timings: dict[str, Timing]) -> None:
    """A table of medians, and of the spread between the quartiles."""
    print(f"\n{title}\n    {'':<48}{'median':>12}{'spread':>10}")
    for name, (median, spread) in timings.items():
        print(f"    {name:<48}{_seconds(median):>12}{spread:>9.0%}")


def ratio(timings: dict[str, Timing], slow: str, fast: str) -> float:
    return timings[slow].median / timings[fast].median


def print_figure(question: str, value: float) -> None:
    """A figure of which nothing is asked."""
    print(f"    {question:<48}{value:>12.2f}")


def print_at_most(question: str, value: float, limit: float) -> None:
    """A figure, the most that is asked of it, and whether that holds."""
    _print_verdict(question, value, f"<= {limit:g}", value <= limit)


def print_at_least(question: str, value: float, limit: float) -> None:
    """A figure, the least that is asked of it, and whether that holds."""
    _print_verdict(question, value, f">= {limit:g}", value >= limit)


def print_between(question: str, value: float, low: float, high: float) -> None:
    """A figure, the range that is asked of it, and whether it is in it."""
    _print_verdict(question, value, f"{low:g}-{high:g}", low <= value <= high)


def _print_verdict(question: str, value: float, limit: str, holds: bool) -> None:
    print(f"  > {question:<48}{value:>12.2f}{limit:>10}   {'holds' if holds else 'MISSED'}")


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
