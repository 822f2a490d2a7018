"""How much memory do the native scan's forward and backward take together, beside the formula in the documentation?

Checks the native backend against the oracle. Then measures the peak of the resident memory in one call and its
gradients above what stood there before, in a process of its own for each shape: Linux alone tells it.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timing import print_at_most, print_figure, setting

from mmm_core import selective_scan
from mmm_core.native_library import SCAN_CHUNK
from mmm_core.testing import ScanCase, assert_correct

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((1, 2048, 1536, 16), (8, 1024, 768, 16), (1, 16384, 512, 16), (1, 2048, 1536, 64))  # (b, l, e, n)
TILE = 128  # channels that share a partial sum; native/scan.inl
REAL = 4  # bytes


def main() -> None:
    assert_correct(ScanCase(l=65), partial(selective_scan, backend="native"), torch.float32)
    print(f"The memory of the native scan, forward + backward ({setting()}); (b, l, e, n)")
    for shape in SHAPES:
        b, l, e, n = shape
        run = subprocess.run([sys.executable, __file__, *map(str, shape)], capture_output=True, text=True, check=True)
        measured = int(run.stdout)
        print(f"\n{shape}: formula {formula(*shape) / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
        print_at_most("measured / formula", measured / formula(*shape), 1.1)
        print_figure("one (b, l, e, n) tensor / measured", b * l * e * n * REAL / measured)


def formula(b: int, l: int, e: int, n: int) -> int:
    """The bytes of docs/concepts/native.md, for one group, z, D and delta's bias."""
    output = b * l * e + b * e * n
    kept = b * ceil(l / SCAN_CHUNK) * e * n
    gradients = 3 * b * l * e + 2 * b * l * n + e * n + 2 * e
    partial_sums = 2 * ceil(e / TILE) * b * l * n + b * e * (n + 2)
    return REAL * (output + kept + gradients + partial_sums)


def measure(b: int, l: int, e: int, n: int) -> int:
    """The peak of one call and its gradients, in bytes above what was there before."""
    both_passes(ScanCase(b=1, l=65, e=8, n=n, initial_state=False).inputs())  # what a first call loads or starts
    inputs = ScanCase(b=b, l=l, e=e, n=n, initial_state=False).inputs()
    grad = torch.ones(b, l, e)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = resident("VmRSS")
    both_passes(inputs, grad)
    return resident("VmHWM") - before


def both_passes(inputs: dict[str, Tensor], grad: Tensor | None = None) -> None:
    out = selective_scan(**inputs, delta_softplus=True, backend="native")
    _grads = torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out) if grad is None else grad)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*map(int, sys.argv[1:])))
    else:
        main()
