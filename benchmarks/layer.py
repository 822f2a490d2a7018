"""How much of a Mamba layer's time is its scan, and how much faster does the layer train than transformers'?

The layer is `Mamba(768)`: e 1536, n 16, 4 taps, float32, one text. transformers' `MambaMixer` gets the same parameters;
without CUDA kernels it runs its sequential loop. Checks that both agree on the output and on every gradient. What is
timed:

- layer, forward: the whole layer at l 2048, without gradients.
- convolution, scan: `causal_conv1d` and `selective_scan` alone, on the tensors that the layer calls them with.
- forward + backward: the layer at l 512 and the gradients of its input and of all its parameters, the gradient of the
  output at hand. transformers' takes tens of seconds, since the time of its backward grows with the square of `l`; it
  is warm from the check, and timed twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from timing import measure, print_at_least, print_at_most, print_timings, ratio, setting
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.utils import logging

from mmm_core import Mamba, causal_conv1d, selective_scan
from mmm_core.layers import mamba
from mmm_core.testing import rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor, nn

DIM, LONG, SHORT = 768, 2048, 512
TOLERANCE = 1e-5  # of two libraries in float32
FAST_ROUNDS, SLOW_ROUNDS = 25, 2


def main() -> None:
    logging.set_verbosity_error()  # transformers says that it has no CUDA kernels
    torch.manual_seed(0)
    layer = Mamba(DIM)
    mixer = MambaMixer(MambaConfig(hidden_size=DIM, num_hidden_layers=1), layer_idx=0)
    mixer.load_state_dict(layer.state_dict(), assign=True)
    print(f"Mamba({DIM}), float32, one text ({setting()})")
    time_forward(layer)
    time_both(layer, mixer)


@torch.no_grad()
def time_forward(layer: Mamba) -> None:
    x = torch.randn(1, LONG, DIM)
    runs = {"layer": lambda: layer(x)} | operations(layer, x)
    times = measure(runs, FAST_ROUNDS)
    print_timings(f"l {LONG}: forward", times)
    share = ratio(times, "convolution", "layer") + ratio(times, "scan", "layer")
    print_at_most("(convolution + scan) / layer", share, 0.35)


def operations(layer: Mamba, x: Tensor) -> dict[str, Callable[[], object]]:
    """The layer's calls of its two operations, to be repeated."""
    calls: dict[str, Callable[[], object]] = {}

    def kept(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*tensors: Tensor, **options: Any) -> Any:
            calls[name] = lambda: operation(*tensors, **options)
            return operation(*tensors, **options)

        return run

    with (
        patch.object(mamba, "causal_conv1d", kept("convolution", causal_conv1d)),
        patch.object(mamba, "selective_scan", kept("scan", selective_scan)),
    ):
        layer(x)
    return calls


def time_both(layer: Mamba, mixer: MambaMixer) -> None:
    x, grad = torch.randn(1, SHORT, DIM).requires_grad_(), torch.randn(1, SHORT, DIM)
    check(forward_and_backward(layer, x, grad), forward_and_backward(mixer, x, grad))
    runs = {
        "layer": lambda: forward_and_backward(layer, x, grad),
        "transformers": lambda: forward_and_backward(mixer, x, grad),
    }
    times = measure(runs, SLOW_ROUNDS)
    print_timings(f"l {SHORT}: forward + backward", times)
    print_at_least("transformers / layer", ratio(times, "transformers", "layer"), 50)


def forward_and_backward(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The output and the gradients by name."""
    out = module(x)
    inputs = {"x": x} | dict(module.named_parameters())
    grads = torch.autograd.grad(out, list(inputs.values()), grad)
    return {"output": out} | dict(zip(inputs, grads, strict=True))


def check(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Raise unless output and gradients agree."""
    for name, expected in theirs.items():
        error = rms_error_ratio(ours[name], expected)
        assert error <= TOLERANCE, f"{name}: RMS error ratio {error:.2e} to transformers, at most {TOLERANCE:.0e}"


if __name__ == "__main__":
    main()
