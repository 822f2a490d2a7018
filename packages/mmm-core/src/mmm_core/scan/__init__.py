"""The selective scan and its single step: validate once, choose a backend, call the operator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mmm_core.backends import choose
from mmm_core.eager import eager, needs_gradient, refuse_tangents, writable
from mmm_core.scan.check import check
from mmm_core.scan.decomposition import decomposition
from mmm_core.scan.mamba_ssm_gpu import misfit
from mmm_core.scan.operator import BACKENDS, eager_selective_scan, forward
from mmm_core.scan.operator import selective_scan as _operator

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def selective_scan(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l *g n"],
    C: Float[Tensor, "b l *g n"],
    D: Float[Tensor, " e"] | None = None,
    z: Float[Tensor, "b l e"] | None = None,
    delta_bias: Float[Tensor, " e"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "k e n"] | None = None,
    return_final_state: bool = False,
    cu_seqlens: Int[Tensor, " bounds"] | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b l e"] | tuple[Float[Tensor, "b l e"], Float[Tensor, "k e n"]]:
    """The selective state-space scan of Mamba along `l`.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t . h_t + D u_t;  out = y * silu(z)

    Any mix of float16, bfloat16, float32 and float64, any strides, any size including zero. Everything is
    differentiable with respect to every floating input, through both outputs.

    Args:
        u: Input, `(b, l, e)`.
        delta: Step sizes, `(b, l, e)`, before `delta_bias` and softplus.
        A: Continuous transition, `(e, n)`, real; negative for a state that decays.
        B: Input projection, `(b, l, n)`, or `(b, l, g, n)` for `g` groups of `e / g` channels each.
        C: Output projection, shaped as `B`.
        D: Skip weight, `(e,)`.
        z: Gate, `(b, l, e)`.
        delta_bias: Added to `delta`, `(e,)`.
        delta_softplus: Pass `delta` through softplus (the identity above 20).
        initial_state: State before the first position, `(b, e, n)`; `(k, e, n)` where packed.
        return_final_state: Return the state after the last position as well.
        cu_seqlens: Cumulative lengths `(k+1,)` of k sequences packed into one row; the state starts anew at each.
        reverse: Scan from right to left; the initial state enters at the right end.
        backend: Force one backend of `mmm_core.explain()`.
    Returns:
        The output, `(b, l, e)` in u's dtype; with `return_final_state` also the final state, shaped as
        `initial_state`, ungated, in float32 (float64 where an input is).
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype.
        ValueError: A tensor is on another device than `u`.
        BackendUnavailable: The forced backend cannot run the call.
        RuntimeError: A tensor has a tangent of forward-mode gradients.
    Source:
        arXiv:2312.00752, algorithm 2; as mamba_ssm's `selective_scan_fn`, channel-last.
    """
    where = "selective_scan"
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    check(where, *tensors, state_name="initial_state", outer="b l", cu_seqlens=cu_seqlens)
    out, state = _run(where, *tensors, cu_seqlens, delta_softplus, reverse, return_final_state, backend)
    return (out, state) if return_final_state else out


def selective_state_update(
    state: Float[Tensor, "b e n"],
    u: Float[Tensor, "b e"],
    delta: Float[Tensor, "b e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b *g n"],
    C: Float[Tensor, "b *g n"],
    D: Float[Tensor, " e"] | None = None,
    z: Float[Tensor, "b e"] | None = None,
    delta_bias: Float[Tensor, " e"] | None = None,
    *,
    delta_softplus: bool = False,
) -> Float[Tensor, "b e"]:
    """One token of `selective_scan`: writes `state`, returns the output.

    For decoding: it records no gradient. `selective_scan` with `initial_state` and one position does.

    Args:
        state: State before the token, `(b, e, n)`; holds the state after it on return. It shares no memory
            with the others.
        u: Input, `(b, e)`; `delta`, `z` likewise; `A`, `D`, `delta_bias` as in `selective_scan`.
        delta: Step sizes, `(b, e)`.
        A: Continuous transition, `(e, n)`.
        B: Input projection, `(b, n)` or `(b, g, n)`.
        C: Output projection, shaped as `B`.
        D: Skip weight, `(e,)`.
        z: Gate, `(b, e)`.
        delta_bias: Added to `delta`, `(e,)`.
        delta_softplus: Pass `delta` through softplus.
    Returns:
        The output, `(b, e)` in u's dtype.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype.
        ValueError: A tensor is on another device than `u`.
        RuntimeError: Numbers of the state share their memory, or a tensor has a tangent of forward-mode gradients.
    Source:
        As mamba_ssm's `selective_state_update`.
    """
    where = "selective_state_update"
    tensors = (u, delta, A, B, C, D, z, delta_bias, state)
    check(where, *tensors, state_name="state", outer="b")
    chosen = choose(where, None, "u", u.device, partial(misfit, *tensors))
    if chosen in ("triton", "native") and eager(tensors) and writable(state):
        kernels: Any = BACKENDS[chosen]
        y: Tensor = kernels.update(*tensors, delta_softplus)
        return y
    with torch.no_grad():
        u, delta, B, C = (x.unsqueeze(1) for x in (u, delta, B, C))
        z = None if z is None else z.unsqueeze(1)
        tensors = (u, delta, A, B, C, D, z, delta_bias, state)
        out, new_state = _run(where, *tensors, None, delta_softplus, False, True, None)
        state.copy_(new_state)
        return out.squeeze(1)


def _run(
    where: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    return_final_state: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Output and final state of a call that was checked."""
    if B.ndim == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)  # (b, l, g, n)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    save = needs_gradient(tensors)
    misfits = partial(misfit, *tensors, cu_seqlens, reverse, return_final_state and save)
    chosen = choose(where, backend, "u", u.device, misfits)
    if eager(tensors):
        run = eager_selective_scan if save else forward
    else:
        refuse_tangents(where, tensors)
        run = decomposition if torch.onnx.is_in_onnx_export() else _operator
    out, state, _ = run(*tensors, cu_seqlens, delta_softplus, reverse, save, chosen)
    return out, state
