"""The causal depthwise convolution and its single step: validate once, choose a backend, call the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from mmm_core.backends import choose
from mmm_core.conv.decomposition import decomposition
from mmm_core.conv.operator import BACKENDS, eager_causal_conv1d, forward
from mmm_core.conv.operator import causal_conv1d as _operator
from mmm_core.eager import eager, needs_gradient, refuse_tangents, writable
from mmm_core.errors import ShapeError, expect_floating, expect_rank, expect_shape
from mmm_core.sequences import check_cu_seqlens, state_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def causal_conv1d(
    x: Float[Tensor, "b l e"],
    weight: Float[Tensor, "e k"],
    bias: Float[Tensor, " e"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Float[Tensor, "s e t"] | None = None,
    return_final_state: bool = False,
    cu_seqlens: Int[Tensor, " bounds"] | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b l e"] | tuple[Float[Tensor, "b l e"], Float[Tensor, "s e t"]]:
    """Depthwise causal convolution along `l`.

    Args:
        x: Input, `(b, l, e)`, any floating dtype, any strides.
        weight: Taps, `(e, k)`, oldest first.
        bias: `(e,)`.
        activation: None or "silu".
        initial_state: The `k - 1` inputs before the first position, `(b, e, k-1)`, oldest first; zeros where it is
            None. Where packed, `(s, e, k-1)` for s sequences.
        return_final_state: Return the last `k - 1` inputs as well.
        cu_seqlens: Cumulative lengths `(s+1,)` of s sequences packed into one row; none sees its neighbour.
        reverse: Convolve from right to left; the initial state stands at the right end.
        backend: Force one backend of `mmm_core.explain()`.
    Returns:
        `(b, l, e)`, dtype of `x`; sums accumulate in float32 (float64 where an input is). With `return_final_state`
        also the final state, shaped as `initial_state`, dtype of `x`.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype.
        ValueError: A tensor is on another device than `x`, or `activation` is unknown.
        BackendUnavailable: The forced backend cannot run the call.
        RuntimeError: A tensor has a tangent of forward-mode gradients.
    Source:
        arXiv:2312.00752 §3.4; as causal_conv1d's `causal_conv1d_fn`, channel-last.
    """
    where = "causal_conv1d"
    _check(where, "b l", x, weight, bias, activation, "initial_state", initial_state, cu_seqlens)
    chosen = choose(where, backend, "x", x.device, _misfit)
    tensors = (x, weight, bias, initial_state)
    if eager(tensors):
        run = eager_causal_conv1d if needs_gradient(tensors) else forward
    else:
        refuse_tangents(where, tensors)
        run = decomposition if torch.onnx.is_in_onnx_export() else _operator
    out, state = run(*tensors, cu_seqlens, activation == "silu", reverse, chosen)
    return (out, state) if return_final_state else out


def causal_conv1d_update(
    x: Float[Tensor, "b e"],
    state: Float[Tensor, "b e t"],
    weight: Float[Tensor, "e k"],
    bias: Float[Tensor, " e"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> Float[Tensor, "b e"]:
    """One token of `causal_conv1d`: writes `state`, returns the output.

    For decoding: it records no gradient. `causal_conv1d` with `initial_state` and one position does.

    Args:
        x: Input, `(b, e)`.
        state: The `k - 1` inputs before the token, `(b, e, k-1)`, oldest first; holds the newest on return.
            It shares no memory with the others.
        weight: Taps, `(e, k)`, oldest first.
        bias: `(e,)`.
        activation: None or "silu".
    Returns:
        `(b, e)`, dtype of `x`.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype.
        ValueError: A tensor is on another device than `x`, or `activation` is unknown.
        RuntimeError: Numbers of the state share their memory, or a tensor has a tangent of forward-mode gradients.
    Source:
        As causal_conv1d's `causal_conv1d_update`.
    """
    where = "causal_conv1d_update"
    _check(where, "b", x, weight, bias, activation, "state", state)
    chosen, silu = choose(where, None, "x", x.device, _misfit), activation == "silu"
    if chosen in ("triton", "native") and eager((x, weight, bias, state)) and writable(state):
        kernels: Any = BACKENDS[chosen]
        y: Tensor = kernels.update(x, weight, bias, state, silu)
        return y
    refuse_tangents(where, (x, weight, bias, state))
    with torch.no_grad():
        out: Tensor = _operator(x.unsqueeze(1), weight, bias, state, None, silu, False, chosen)[0]
        state.copy_(
            torch.cat((state, x.unsqueeze(-1).to(state.dtype)), dim=-1)[..., 1:]
        )  # the final state has x's dtype
        return out.squeeze(1)


def _misfit() -> str:
    """Why mamba_ssm cannot run a call: as of `mmm_core.backends.why_not`."""
    return "mamba_ssm has no convolution"


def _check(
    where: str,
    outer: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state_name: str,
    state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> None:
    """Raise unless the arguments fit each other; `x` sets b, l and e, `weight` sets k."""
    expect_floating(where, ("x", "weight", "bias", state_name), (x, weight, bias, state))
    expect_rank(where, "x", x, f"{outer} e")
    check_cu_seqlens(where, cu_seqlens, "x", x)
    e = x.shape[-1]
    if weight.ndim != 2 or weight.shape[0] != e or weight.shape[1] == 0:
        hint = " If it is a Conv1d's (e, 1, k), pass weight.squeeze(1)." if weight.ndim == 3 else ""
        raise ShapeError(f"{where}: `weight` must be (e, k) with e = {e} and k >= 1, got {tuple(weight.shape)}.{hint}")
    if bias is not None:
        expect_shape(where, "bias", bias, "e", (e,))
    if state is not None:
        rows = "b" if cu_seqlens is None else "s"
        sizes = (state_rows(x.shape[0], cu_seqlens), e, weight.shape[1] - 1)
        expect_shape(where, state_name, state, f"{rows} e k-1", sizes)
    if activation not in (None, "silu"):
        raise ValueError(f"{where}: `activation` must be None or 'silu', got {activation!r}.")
