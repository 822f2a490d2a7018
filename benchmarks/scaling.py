"""How does the time of the native scan grow with length, and shrink with threads?

Checks the native backend against the oracle, then the results on the inputs that are timed: the first half of the
longest text against a scan of it alone, bit by bit, and two threads against one. Then prints the exponent of time in
length, a straight line through the logarithms, and what a second thread gives.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from timing import keep_memory, measure, print_at_least, print_between, print_timings, ratio, setting

from mmm_core import selective_scan
from mmm_core.testing import ScanCase, assert_correct

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = tuple(2**k for k in range(9, 17))  # 512 to 65,536
WIDTH, STATE = 1536, 16
LONG = (1, 2048, 1536, 16)  # (b, l, e, n), for the threads
ALONG_L = ("u", "delta", "B", "C", "z")


def main() -> None:
    keep_memory()  # else short calls are charged for the system's clearing of pages, which has no share in their length
    assert_correct(ScanCase(l=65), partial(selective_scan, backend="native"), torch.float32)
    print(f"The native scan against length and threads ({setting()})")
    time_lengths()
    time_threads()


def time_lengths() -> None:
    inputs = ScanCase(b=1, l=LENGTHS[-1], e=WIDTH, n=STATE, initial_state=False).inputs()
    whole, half = forward(cut(inputs, LENGTHS[-1])), forward(cut(inputs, LENGTHS[-2]))
    assert torch.equal(whole[:, : LENGTHS[-2]], half)
    for name, run in (("forward", forward), ("forward + backward", forward_and_backward)):
        times = measure({f"l {l:,}": partial(run, cut(inputs, l)) for l in LENGTHS}, 9)
        print_timings(f"b 1, e {WIDTH}, n {STATE}: {name}", times)
        exponent = slope([math.log(l) for l in LENGTHS], [math.log(times[f"l {l:,}"].median) for l in LENGTHS])
        print_between("exponent of time in length", exponent, 0.95, 1.05)


def time_threads() -> None:
    b, l, e, n = LONG
    inputs = ScanCase(b=b, l=l, e=e, n=n, initial_state=False).inputs()
    threads = torch.get_num_threads()
    results = [on_threads(count, forward_and_backward, inputs) for count in (1, 2)]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    for name, run in (("forward", forward), ("forward + backward", forward_and_backward)):
        times = measure({f"{count} threads": partial(on_threads, count, run, inputs) for count in (1, 2)}, 25)
        print_timings(f"{LONG}: {name}", times)
        print_at_least("1 thread / 2 threads", ratio(times, "1 threads", "2 threads"), 1.8)
    torch.set_num_threads(threads)


def cut(inputs: dict[str, Tensor], l: int) -> dict[str, Tensor]:
    return {name: (x[:, :l] if name in ALONG_L else x).detach().requires_grad_() for name, x in inputs.items()}


@torch.no_grad()
def forward(inputs: dict[str, Tensor]) -> Tensor:
    return selective_scan(**inputs, delta_softplus=True, backend="native")


def forward_and_backward(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    out = selective_scan(**inputs, delta_softplus=True, backend="native")
    return (out, *torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out)))


def on_threads(count: int, run: object, inputs: dict[str, Tensor]) -> object:
    torch.set_num_threads(count)
    return run(inputs)


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line with the least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
