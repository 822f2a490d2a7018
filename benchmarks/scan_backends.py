"""How much faster than the step-by-step definition is the chunked scan?

Checks each backend against the oracle, and the two against each other on the inputs that are timed. Then times them in
turn, in one run, and prints the ratios of the medians.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from mmm_core import selective_scan
from mmm_core.testing import GRADIENT_TOLERANCE, ScanCase, assert_correct, rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BACKENDS = ("reference", "chunked")
SHAPES = ((1, 2048, 1536, 16), (8, 196, 384, 16), (64, 74, 192, 16))
ROUNDS = 5


def main() -> None:
    for backend in BACKENDS:
        assert_correct(ScanCase(l=65), partial(selective_scan, backend=backend), torch.float32)
    print(f"float32, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds\n")
    print(f"{'(b, l, e, n)':>22}  {'pass':<18}{'chunked':>9}{'reference':>11}   ratio")
    for shape in SHAPES:
        b, l, e, n = shape
        inputs = ScanCase(b=b, l=l, e=e, n=n, initial_state=False).inputs()
        check_agreement(inputs)
        for name, run in (("forward", forward), ("forward + backward", forward_and_backward)):
            times = medians({backend: partial(run, inputs, backend) for backend in BACKENDS})
            slow, fast = times["reference"], times["chunked"]
            print(f"{shape!s:>22}  {name:<18}{fast * 1e3:6.0f} ms{slow * 1e3:8.0f} ms{slow / fast:8.1f}")


@torch.no_grad()
def forward(inputs: dict[str, Tensor], backend: str) -> None:
    selective_scan(**inputs, delta_softplus=True, backend=backend)


def forward_and_backward(inputs: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    return (out, *torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out)))


def check_agreement(inputs: dict[str, Tensor]) -> None:
    """Raise unless the backends agree on output and gradients, as far as each may be from the oracle."""
    expected, actual = (forward_and_backward(inputs, backend) for backend in BACKENDS)
    for x, y in zip(actual, expected, strict=True):
        ratio = rms_error_ratio(x, y)
        assert ratio <= 2 * GRADIENT_TOLERANCE[torch.float32], f"RMS error ratio {ratio:.2e} between the backends"


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each run; the runs take turns, so that a busy moment of the machine meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
