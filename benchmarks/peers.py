"""How fast are the native scan, forward and backward, beside the same scan of other libraries?

Checks all results on the inputs that are timed against float64. What is timed, each with delta's bias, softplus, D and
the gate, in float32:

- native, chunked: `selective_scan` with that backend.
- transformers: the function `mamba_selective_scan` that its `MambaMixer` calls for a whole sequence where no CUDA
  kernels are installed, by its sequential loop, on tensors laid out as the mixer lays them out. Nothing else of the
  mixer is timed. Forward only: the time of its backward grows with the square of `l`; layer.py has it at l 512.
- mambapy: `MambaBlock.selective_scan`, its parallel scan, with softplus and gate around it as in its `MambaBlock`.

The gradient of the output is at hand, as it is in a network; outputs and gradients are allocated anew in each call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from mambapy.mamba import MambaBlock, MambaConfig
from scan import LONG, SHORT, Call, converted, forward, forward_and_backward, new_call, raise_unless_close, scan_by
from timing import measure, print_at_least, print_figure, print_timings, ratio, setting
from torch.nn import functional as F
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.utils import logging

from mmm_core.testing import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE

if TYPE_CHECKING:
    from timing import Timing
    from torch import Tensor

PEER_TOLERANCE = 1e-5
FORWARD_LIMITS = {LONG: {"transformers": 60, "mambapy": 90}, SHORT: {}}
BOTH_LIMITS = {LONG: {}, SHORT: {"mambapy": 100}}


def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    print(f"The native scan beside other libraries ({setting()}); (b, l, e, n)")
    for shape in (LONG, SHORT):
        call = new_call(shape)
        check(call)
        time_forward(shape, call)
        time_both(shape, call)


def time_forward(shape: tuple[int, ...], call: Call) -> None:
    times = measure(
        {
            "native": partial(forward, scan_by("native"), call),
            "chunked": partial(forward, scan_by("chunked"), call),
            "transformers": partial(forward, transformers_scan, as_in_mixer(call)),
            "mambapy": partial(forward, mambapy_scan, call),
        }
    )
    print_timings(f"{shape}: forward", times)
    compare(times, FORWARD_LIMITS[shape])


def time_both(shape: tuple[int, ...], call: Call) -> None:
    times = measure(
        {
            "native": partial(forward_and_backward, scan_by("native"), call),
            "chunked": partial(forward_and_backward, scan_by("chunked"), call),
            "mambapy": partial(forward_and_backward, mambapy_scan, call),
        }
    )
    print_timings(f"{shape}: forward + backward", times)
    compare(times, BOTH_LIMITS[shape])


def compare(times: dict[str, Timing], limits: dict[str, int]) -> None:
    for name in [name for name in times if name != "native"]:
        question, value = f"{name} / native", ratio(times, name, "native")
        if name in limits:
            print_at_least(question, value, limits[name])
        else:
            print_figure(question, value)


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


def check(call: Call) -> None:
    """Raise unless all runs agree with float64 on output and gradients."""
    exact = forward_and_backward(scan_by("chunked"), converted(call, torch.float64, parameters=True))
    ours = (OUTPUT_TOLERANCE[torch.float32], GRADIENT_TOLERANCE[torch.float32])
    for run, results, most in (
        ("native", forward_and_backward(scan_by("native"), call), ours),
        ("chunked", forward_and_backward(scan_by("chunked"), call), ours),
        ("mambapy", forward_and_backward(mambapy_scan, call), (PEER_TOLERANCE,) * 2),
        ("transformers", (forward(transformers_scan, as_in_mixer(call)),), (PEER_TOLERANCE,) * 2),
    ):
        raise_unless_close(run, call, results, exact, most)


if __name__ == "__main__":
    main()
