"""How long do `import mmm_fusion` and `import mmm_block` take, once torch is there?

Each figure is the median over new interpreters, which take turns: one imports torch alone and then the package, and
times the second. No plug-in is imported, whatever is installed: that is checked in each.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import print_at_most, print_timings, timing

ROUNDS = 15
LIMIT = 30e-3  # seconds
PROGRAM = """
import sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import {package}
print(time.perf_counter() - start)
import importlib.metadata
plugins = {{each.module for each in importlib.metadata.entry_points(group="mmm_fusion")}}
assert not plugins & set(sys.modules) - before, plugins & set(sys.modules)
"""
PACKAGES = ("mmm_fusion", "mmm_fusion.testing", "mmm_block", "mmm_block.model")


def main() -> None:
    seconds: dict[str, list[float]] = {package: [] for package in PACKAGES}
    for turn in range(ROUNDS + 1):
        for package in PACKAGES:
            taken = import_time(package)
            if turn:  # the first finds no compiled files
                seconds[package].append(taken)
    print_timings("Imports beyond torch", {f"import {package}": timing(taken) for package, taken in seconds.items()})
    print_at_most("import mmm_fusion, milliseconds", statistics.median(seconds["mmm_fusion"]) * 1e3, LIMIT * 1e3)


def import_time(package: str) -> float:
    """Seconds of the import in a new interpreter that has torch."""
    command = [sys.executable, "-c", PROGRAM.format(package=package)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
