"""The selective scan by mamba_ssm's compiled extension, where it is installed and the call fits it.

The extension is channel-first and wants the length contiguous: channel-last tensors are copied on the way in and out.
It adds gradients up with atomics, so that a backward does not repeat to the last bit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from mmm_core.errors import BackendUnavailable
from mmm_core.scan.problem import Gradients, Problem

if TYPE_CHECKING:
    from torch import Tensor

MOST_STATES = 256
MOST_ELEMENTS = 2**31  # its offsets are 32 bits wide
CHUNK = 2048  # positions between two checkpoints


def misfit(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    final_state_needs_gradient: bool = False,
) -> str | None:
    """Why the extension does not take a call, or None where it does."""
    inputs = [x for x in (u, delta, B, C, z) if x is not None]
    for present, what in (
        (initial_state is not None, "an initial state"),
        (cu_seqlens is not None, "packed sequences"),
        (reverse, "the reverse direction"),
        (final_state_needs_gradient, "a gradient of the final state"),
    ):
        if present:
            return f"mamba_ssm does not know {what}"
    if len({x.dtype for x in inputs}) > 1 or any(
        x is not None and x.dtype == torch.float64 for x in (u, A, D, delta_bias)
    ):
        return "mamba_ssm needs one dtype for `u`, `delta`, `B`, `C` and `z`, and no float64"
    if A.shape[1] > MOST_STATES:
        return f"n = {A.shape[1]} is more than mamba_ssm's {MOST_STATES}"
    if not all(0 < x.numel() < MOST_ELEMENTS for x in inputs):
        return f"mamba_ssm needs tensors of 1 to {MOST_ELEMENTS - 1} elements"
    return None


def checkpoint_shape(p: Problem) -> tuple[int, ...]:
    """The extension's own checkpoints, and where there is a gate the output before it."""
    return (_states(p) + (0 if p.z is None else p.z.numel()),)


def forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, l, e), the final state (b, e, n), and the checkpoints where they are asked for."""
    out, states, *gated = _extension().fwd(*_arguments(p), p.delta_softplus)
    final_state = states[:, :, -1, 1::2].contiguous()  # beside each state stands the product of its transitions
    kept = [states.flatten(), *([] if p.z is None else [out.flatten().float()])]
    checkpoints = torch.cat(kept) if save else states.new_empty(0)
    return _swapped(gated[0] if gated else out).contiguous(), final_state, checkpoints


def backward(p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input; there is none through the final state."""
    if grad_final_state is not None:
        raise BackendUnavailable(
            "selective_scan: backend 'mamba_ssm' has no gradient of the final state. Call with backend='chunked'."
        )
    b, l, e, _, n = p.sizes
    size = _states(p)
    states = checkpoints[:size].view(b, e, -1, 2 * n)
    out = None if p.z is None else checkpoints[size:].view(b, e, l).to(p.u.dtype)
    incoming = (_channel_first(grad_out.to(p.u.dtype)), states, out, None, p.delta_softplus, False)
    u, delta, A, B, C, D, delta_bias, *z = _extension().bwd(*_arguments(p), *incoming)
    absent = p.u.new_empty(0)
    return Gradients(
        u=_swapped(u),
        delta=_swapped(delta),
        A=A,
        B=_length_before_groups(B),
        C=_length_before_groups(C),
        D=absent if p.D is None else D,
        z=_swapped(z[0]) if z else absent,
        delta_bias=absent if p.delta_bias is None else delta_bias,
        initial_state=absent,
    )


def _extension() -> Any:
    return import_module("selective_scan_cuda")


def _states(p: Problem) -> int:
    """Numbers in the extension's checkpoints: two for each state at the end of each chunk."""
    b, l, e, _, n = p.sizes
    return b * e * ((l + CHUNK - 1) // CHUNK) * 2 * n


def _arguments(p: Problem) -> list[Tensor | None]:
    """The inputs in the extension's order and layout: (b, e, l) and (b, g, n, l), and parameters in float32."""
    projections = [x.permute(0, 2, 3, 1).contiguous() for x in (p.B, p.C)]
    vectors = [None if x is None else x.float().contiguous() for x in (p.D, p.delta_bias)]
    z = None if p.z is None else _channel_first(p.z)
    return [_channel_first(p.u), _channel_first(p.delta), p.A.float(), *projections, vectors[0], z, vectors[1]]


def _channel_first(x: Tensor) -> Tensor:
    """(b, l, e) as (b, e, l) with the length contiguous: a copy where it was not."""
    x = _swapped(x)
    return x if x.stride(2) == 1 else x.contiguous()


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _length_before_groups(x: Tensor) -> Tensor:
    """(b, g, n, l) as (b, l, g, n)."""
    return x.permute(0, 3, 1, 2)
