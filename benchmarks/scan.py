"""How fast is the native scan, forward and backward, beside its exponentials alone, and in bfloat16 beside float32?

Checks the native backend against the oracle, then its results on the inputs that are timed against float64. What is
timed, with delta's bias, softplus, D and the gate:

- bare exponentials: b·l·e·n of them in float32, by the same vector code on the same threads, with no other work.
- native: `selective_scan`. In bfloat16 the tensors with an axis `l` have that dtype.

The gradient of the output is at hand, as it is in a network. Outputs and gradients are allocated anew in each call,
from memory that the C library keeps: else the system's clearing of fresh pages would be most of what is measured.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from timing import keep_memory, measure, print_at_most, print_timings, ratio, setting

from mmm_core import selective_scan
from mmm_core.native_library import LIBRARY
from mmm_core.testing import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, ScanCase, assert_correct, rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Scan = Callable[..., Tensor]

LONG, SHORT = (1, 2048, 1536, 16), (8, 196, 384, 16)  # (b, l, e, n)
PARAMETERS = ("A", "D", "delta_bias")
ROUNDS = 31
BFLOAT16_TOLERANCE = 2**-8  # half a step between two numbers, where rounding is all that is lost


class Call(NamedTuple):
    """The tensors of a scan by name, and the gradient of its output."""

    inputs: dict[str, Tensor]
    grad: Tensor


def main() -> None:
    keep_memory()
    assert_correct(ScanCase(l=65), partial(selective_scan, backend="native"), torch.float32)
    print(f"The native scan beside its exponentials ({setting()}); (b, l, e, n)")
    for shape in (LONG, SHORT):
        call = new_call(shape)
        half = converted(call, torch.bfloat16)
        check(call, (OUTPUT_TOLERANCE[torch.float32], GRADIENT_TOLERANCE[torch.float32]))
        check(half, (BFLOAT16_TOLERANCE,) * 2)
        time_all(shape, call, half)


def time_all(shape: tuple[int, ...], call: Call, half: Call) -> None:
    b, l, e, n = shape
    native = scan_by("native")
    runs: dict[str, Callable[[], object]] = {
        "bare exponentials": partial(LIBRARY.mmm_core_exponentials, b * l * e * n),
        "forward": partial(forward, native, call),
        "forward, bfloat16": partial(forward, native, half),
        "both": partial(forward_and_backward, native, call),
        "both, bfloat16": partial(forward_and_backward, native, half),
    }
    times = measure(runs, ROUNDS)
    print_timings(f"{shape}; both: forward + backward", times)
    print_at_most("forward / bare exponentials", ratio(times, "forward", "bare exponentials"), 2.5)
    print_at_most("both / bare exponentials", ratio(times, "both", "bare exponentials"), 8.0)
    print_at_most("both / forward", ratio(times, "both", "forward"), 3.5)
    print_at_most("forward: bfloat16 / float32", ratio(times, "forward, bfloat16", "forward"), 1.0)
    print_at_most("both: bfloat16 / float32", ratio(times, "both, bfloat16", "both"), 1.0)


def new_call(shape: tuple[int, ...]) -> Call:
    b, l, e, n = shape
    inputs = ScanCase(b=b, l=l, e=e, n=n, initial_state=False).inputs()
    return Call(inputs, torch.randn(b, l, e, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def forward(scan: Scan, call: Call) -> Tensor:
    return scan(**call.inputs)


def forward_and_backward(scan: Scan, call: Call) -> tuple[Tensor, ...]:
    out = scan(**call.inputs)
    return (out, *torch.autograd.grad(out, list(call.inputs.values()), call.grad))


def scan_by(backend: str) -> Scan:
    return partial(selective_scan, delta_softplus=True, backend=backend)


def converted(call: Call, dtype: torch.dtype, *, parameters: bool = False) -> Call:
    """The call in another dtype, the parameters only where they are asked for."""
    inputs = {
        name: x.detach().to(x.dtype if name in PARAMETERS and not parameters else dtype).requires_grad_()
        for name, x in call.inputs.items()
    }
    return Call(inputs, call.grad.to(dtype))


def check(call: Call, most: tuple[float, float]) -> None:
    """Raise unless the native scan agrees with float64 on output and gradients."""
    exact = forward_and_backward(scan_by("chunked"), converted(call, torch.float64, parameters=True))
    raise_unless_close("native", call, forward_and_backward(scan_by("native"), call), exact, most)


def raise_unless_close(
    run: str, call: Call, results: Sequence[Tensor], expected: Sequence[Tensor], most: tuple[float, float]
) -> None:
    """Raise where an output or a gradient is further off than `most` of it."""
    names = ("output", *(f"gradient of {name}" for name in call.inputs))
    for name, x, y in zip(names, results, expected, strict=False):
        error, tolerance = rms_error_ratio(x, y), most[name != "output"]
        assert error <= tolerance, f"{run}: {name}: RMS error ratio {error:.2e}, at most {tolerance:.0e}"


if __name__ == "__main__":
    main()
