"""How fast is the native scan, beside its exponentials alone and beside other libraries?

Checks the native backend against the oracle, then the results of all runs on the inputs that are timed against float64.
What is timed, each with delta's bias, softplus, D and the gate:

- bare exponentials: b·l·e·n of them in float32, by the same vector code on the same threads, with no other work.
- native, chunked: `selective_scan` with that backend. In bfloat16 the tensors with an axis `l` have that dtype.
- transformers: the function `mamba_selective_scan` that its `MambaMixer` calls for a whole sequence where no CUDA
  kernels are installed, by its sequential loop, on tensors laid out as the mixer lays them out. Nothing else of the
  mixer is timed. Forward only: the time of its backward grows with the square of `l`; layer.py has it at l 512.
- mambapy: `MambaBlock.selective_scan`, its parallel scan, with softplus and gate around it as in its `MambaBlock`.

The gradient of the output is at hand, as it is in a network; outputs and gradients are allocated anew in each call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from mambapy.mamba import MambaBlock, MambaConfig
from timing import measure, print_at_least, print_at_most, print_figure, print_timings, ratio, setting
from torch.nn import functional as F
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.utils import logging

from mmm_core import selective_scan
from mmm_core.native_library import LIBRARY
from mmm_core.testing import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, ScanCase, assert_correct, rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from timing import Timing
    from torch import Tensor

    Scan = Callable[..., Tensor]

LONG, SHORT = (1, 2048, 1536, 16), (8, 196, 384, 16)  # (b, l, e, n)
PARAMETERS = ("A", "D", "delta_bias")
FAST_ROUNDS = 25
PEER_TOLERANCE = 1e-5  # of the other libraries, in float32
BFLOAT16_TOLERANCE = 2**-8  # half a step between two numbers, where rounding is all that is lost


class Call(NamedTuple):
    """The tensors of a scan by name, and the gradient of its output."""

    inputs: dict[str, Tensor]
    grad: Tensor


def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    assert_correct(ScanCase(l=65), partial(selective_scan, backend="native"), torch.float32)
    print(f"The native scan ({setting()}) beside its exponentials and beside other libraries; (b, l, e, n)")
    for shape in (LONG, SHORT):
        b, l, e, n = shape
        inputs = ScanCase(b=b, l=l, e=e, n=n, initial_state=False).inputs()
        call = Call(inputs, torch.randn(b, l, e, generator=torch.Generator().manual_seed(1)))
        half = converted(call, torch.bfloat16)
        check(call, half)
        bare = {"bare exponentials": partial(LIBRARY.mmm_core_exponentials, b * l * e * n)}
        time_forward(shape, call, half, bare)
        time_both(shape, call, half, bare)


def time_forward(shape: tuple[int, ...], call: Call, half: Call, bare: dict[str, Callable[[], object]]) -> None:
    native = partial(forward, scan_by("native"), call)
    times = measure(
        bare | {"native": native, "native, bfloat16": partial(forward, scan_by("native"), half)}, FAST_ROUNDS
    )
    print_timings(f"{shape}: forward", times)
    print_at_most("native / bare exponentials", ratio(times, "native", "bare exponentials"), 2.5)
    print_at_most("native, bfloat16 / float32", ratio(times, "native, bfloat16", "native"), 1.0)
    others = {
        "native": native,
        "chunked": partial(forward, scan_by("chunked"), call),
        "transformers": partial(forward, transformers_scan, as_in_mixer(call)),
        "mambapy": partial(forward, mambapy_scan, call),
    }
    times = measure(others)
    print_timings(f"{shape}: forward, other scans", times)
    compare_with_others(times, {"transformers": 60, "mambapy": 90} if shape == LONG else {})


def time_both(shape: tuple[int, ...], call: Call, half: Call, bare: dict[str, Callable[[], object]]) -> None:
    native = partial(forward_and_backward, scan_by("native"), call)
    ours = {"native, forward alone": partial(forward, scan_by("native"), call), "native": native}
    ours["native, bfloat16"] = partial(forward_and_backward, scan_by("native"), half)
    times = measure(bare | ours, FAST_ROUNDS)
    print_timings(f"{shape}: forward + backward", times)
    print_at_most("native / bare exponentials", ratio(times, "native", "bare exponentials"), 8.0)
    print_at_most("native / its forward alone", ratio(times, "native", "native, forward alone"), 3.5)
    print_at_most("native, bfloat16 / float32", ratio(times, "native, bfloat16", "native"), 1.0)
    others = {
        "native": native,
        "chunked": partial(forward_and_backward, scan_by("chunked"), call),
        "mambapy": partial(forward_and_backward, mambapy_scan, call),
    }
    times = measure(others)
    print_timings(f"{shape}: forward + backward, other scans", times)
    compare_with_others(times, {"mambapy": 100} if shape == SHORT else {})


def compare_with_others(times: dict[str, Timing], limits: dict[str, float]) -> None:
    for name in [name for name in times if name != "native"]:
        question, value = f"{name} / native", ratio(times, name, "native")
        if name in limits:
            print_at_least(question, value, limits[name])
        else:
            print_figure(question, value)


@torch.no_grad()
def forward(scan: Scan, call: Call) -> Tensor:
    return scan(**call.inputs)


def forward_and_backward(scan: Scan, call: Call) -> tuple[Tensor, ...]:
    out = scan(**call.inputs)
    return (out, *torch.autograd.grad(out, list(call.inputs.values()), call.grad))


def scan_by(backend: str) -> Scan:
    return partial(selective_scan, delta_softplus=True, backend=backend)


def transformers_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Takes `u` and `delta` as (b, e, l) in memory, as its convolution and projection leave them: see `as_in_mixer`."""
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return mamba_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True).transpose(1, 2)


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    return MAMBAPY.selective_scan(u, F.softplus(delta + delta_bias), A, B, C, D) * F.silu(z)


MAMBAPY = MambaBlock(MambaConfig(d_model=1, n_layers=1))  # its scan reads none of its sizes


def as_in_mixer(call: Call) -> Call:
    laid_out = {name: call.inputs[name].mT.contiguous().mT for name in ("u", "delta")}
    return Call(call.inputs | laid_out, call.grad)


def converted(call: Call, dtype: torch.dtype, *, parameters: bool = False) -> Call:
    """The call in another dtype, the parameters only where they are asked for."""
    inputs = {
        name: x.detach().to(x.dtype if name in PARAMETERS and not parameters else dtype).requires_grad_()
        for name, x in call.inputs.items()
    }
    return Call(inputs, call.grad.to(dtype))


def check(call: Call, half: Call) -> None:
    """Raise unless all runs agree with float64 on output and gradients."""
    names = ("output", *(f"gradient of {name}" for name in call.inputs))
    exact = forward_and_backward(scan_by("chunked"), converted(call, torch.float64, parameters=True))
    exact_half = forward_and_backward(scan_by("chunked"), converted(half, torch.float64, parameters=True))
    output, gradient = OUTPUT_TOLERANCE[torch.float32], GRADIENT_TOLERANCE[torch.float32]
    for run, results, expected, most in (
        ("native", forward_and_backward(scan_by("native"), call), exact, (output, gradient)),
        ("native, bfloat16", forward_and_backward(scan_by("native"), half), exact_half, (BFLOAT16_TOLERANCE,) * 2),
        ("chunked", forward_and_backward(scan_by("chunked"), call), exact, (output, gradient)),
        ("mambapy", forward_and_backward(mambapy_scan, call), exact, (PEER_TOLERANCE,) * 2),
        ("transformers", (forward(transformers_scan, as_in_mixer(call)),), exact[:1], (PEER_TOLERANCE,) * 2),
    ):
        for name, x, y in zip(names, results, expected, strict=False):
            error, tolerance = rms_error_ratio(x, y), most[name != "output"]
            assert error <= tolerance, f"{run}: {name}: RMS error ratio {error:.2e}, at most {tolerance:.0e}"


if __name__ == "__main__":
    main()
