"""`causal_conv1d_fn` and `causal_conv1d_update`: the convolution of the library causal_conv1d, channel-first."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from mmm_core import conv
from mmm_core.compat.mamba_ssm.slots import expect_whole, in_slots
from mmm_core.errors import ShapeError, expect_floating, expect_rank, expect_shape

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    Activation = Literal["silu", "swish"] | None


def causal_conv1d_fn(
    x: Float[Tensor, "b e l"],
    weight: Float[Tensor, "e k"],
    bias: Float[Tensor, " e"] | None = None,
    seq_idx: Int[Tensor, "b l"] | None = None,
    initial_states: Float[Tensor, "b e t"] | None = None,
    return_final_states: bool = False,
    final_states_out: Float[Tensor, "b e t"] | None = None,
    activation: Activation = None,
) -> Float[Tensor, "b e l"] | tuple[Float[Tensor, "b e l"], Float[Tensor, "b e t"]]:
    """Depthwise causal convolution along `l`: `mmm_core.causal_conv1d`, channel-first.

    Any number of taps and of channels, any strides. The output stands channel-last in memory.

    Args:
        x: Input, `(b, e, l)`.
        weight: Taps, `(e, k)`, oldest first.
        bias: `(e,)`.
        seq_idx: Which sequence each position belongs to, `(b, l)`, int32 or int64: no tap sees another sequence. The
            positions of a sequence stand together. A negative number is padding, whose output is zero.
        initial_states: The `k - 1` inputs before the first position, `(b, e, k-1)`, oldest first. Not with `seq_idx`.
        return_final_states: Return the last `k - 1` inputs as well. Not with `seq_idx`.
        final_states_out: Where to write them, `(b, e, k-1)`. It is what is returned, but where a gradient is recorded:
            that flows through a tensor of its own.
        activation: None, or "silu", whose other name is "swish".
    Returns:
        `(b, e, l)`, dtype of `x`; with `return_final_states` also the final states, `(b, e, k-1)`.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype, or `seq_idx` does not hold whole numbers.
        ValueError: A tensor is on another device than `x`; `activation` is unknown; `seq_idx` meets states, or comes
            back to a sequence that another one has interrupted.
    Source:
        As causal_conv1d's `causal_conv1d_fn`.
    """
    where = "causal_conv1d_fn"
    expect_floating(where, ("x", "weight", "bias", "initial_states"), (x, weight, bias, initial_states))
    expect_rank(where, "x", x, "b e l")
    b, e, _ = x.shape
    _check(where, e, weight, bias, activation)
    states = (b, e, weight.shape[1] - 1)
    for name, y in (("initial_states", initial_states), ("final_states_out", final_states_out)):
        if y is not None:
            expect_shape(where, name, y, "b e k-1", states)
    silu: Literal["silu"] | None = None if activation is None else "silu"
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            what = "initial_states" if initial_states is not None else "return_final_states"
            raise ValueError(f"{where}: `seq_idx` cannot go with `{what}`. Leave one of them out.")
        return _of_sequences(where, x, weight, bias, seq_idx, silu)
    out, final = conv.causal_conv1d(
        x.transpose(1, 2), weight, bias, activation=silu, initial_state=initial_states, return_final_state=True
    )
    out = out.transpose(1, 2)
    if not return_final_states:
        return out
    if final_states_out is not None:
        with torch.no_grad():
            final_states_out.copy_(final)
        final = final if final.requires_grad else final_states_out
    return out, final


def _of_sequences(
    where: str, x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, silu: Literal["silu"] | None
) -> Tensor:
    """The convolution of rows that hold several sequences each: all rows behind each other, cut where a number ends."""
    b, e, l = x.shape
    expect_whole(where, "seq_idx", seq_idx)
    expect_shape(where, "seq_idx", seq_idx, "b l", (b, l))
    begins = torch.ones_like(seq_idx, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    _expect_together(where, seq_idx, begins, weight.shape[1])
    starts = begins.flatten().nonzero().squeeze(1)
    cu_seqlens = torch.cat((starts, starts.new_tensor([b * l])))
    row = x.transpose(1, 2).reshape(1, b * l, e)
    out, _ = conv.causal_conv1d(row, weight, bias, activation=silu, cu_seqlens=cu_seqlens, return_final_state=True)
    out = out.view(b, l, e)
    padding = seq_idx < 0
    if padding.any():
        out = out.masked_fill(padding[..., None], 0)
    return out.transpose(1, 2)


def _expect_together(where: str, seq_idx: Tensor, begins: Tensor, taps: int) -> None:
    """Raise `ValueError` where a tap would reach over another sequence back into its own."""
    run = begins.cumsum(1)
    for back in range(2, taps):
        same = (seq_idx[:, back:] == seq_idx[:, :-back]) & (seq_idx[:, back:] >= 0)
        if (same & (run[:, back:] != run[:, :-back])).any():
            raise ValueError(
                f"{where}: `seq_idx` must keep the positions of a sequence together, and comes back to a number "
                f"after {back} positions. Give each run a number of its own."
            )


@torch.no_grad()
def causal_conv1d_update(
    x: Float[Tensor, "b e *l"],
    conv_state: Float[Tensor, "s e t"],
    weight: Float[Tensor, "e k"],
    bias: Float[Tensor, " e"] | None = None,
    activation: Activation = None,
    cache_seqlens: Int[Tensor, " b"] | None = None,
    conv_state_indices: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b e *l"]:
    """One token of `causal_conv1d_fn`, or a few: writes `conv_state`, returns the output. It records no gradient.

    Args:
        x: Input, `(b, e)`, or `(b, e, l)` for several tokens.
        conv_state: The newest inputs before `x`, `(b, e, t)` with `t >= k - 1`, oldest first; holds the newest on
            return. With `conv_state_indices`, a pool of any number of states.
        weight: Taps, `(e, k)`, oldest first.
        bias: `(e,)`.
        activation: None, or "silu", whose other name is "swish".
        cache_seqlens: The tokens before `x`, `(b,)`, int32 or int64: `conv_state` is then a ring, which `x` enters at
            this number modulo `t`.
        conv_state_indices: The state of each row of `x`, `(b,)`, none of them twice. A negative one stands for padding:
            its output is zero, and no state is written.
    Returns:
        The output, shaped as `x` and in its dtype.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype; `cache_seqlens` or `conv_state_indices` does not hold whole
            numbers.
        ValueError: A tensor is on another device than `x`, or `activation` is unknown.
        IndexError: `conv_state_indices` names a state that is not there.
    Source:
        As causal_conv1d's `causal_conv1d_update`.
    """
    where = "causal_conv1d_update"
    expect_floating(where, ("x", "conv_state", "weight", "bias"), (x, conv_state, weight, bias))
    if x.ndim not in (2, 3):
        raise ShapeError(f"{where}: `x` must be (b, e) or (b, e, l), got {tuple(x.shape)}.")
    b, e = x.shape[:2]
    _check(where, e, weight, bias, activation)
    before = weight.shape[1] - 1
    rows = b if conv_state_indices is None else conv_state.shape[0] if conv_state.ndim else 0
    if conv_state.ndim != 3 or conv_state.shape[:2] != (rows, e) or conv_state.shape[2] < before:
        axes = f"(b, e, t) with b = {b}, " if conv_state_indices is None else "(states, e, t) with "
        raise ShapeError(
            f"{where}: `conv_state` must be {axes}e = {e} and t >= k-1 = {before}, got {tuple(conv_state.shape)}."
        )
    if cache_seqlens is not None:
        expect_whole(where, "cache_seqlens", cache_seqlens)
        expect_shape(where, "cache_seqlens", cache_seqlens, "b", (b,))
    silu: Literal["silu"] | None = None if activation is None else "silu"
    tokens = x if x.ndim == 3 else x.unsqueeze(-1)
    step = partial(_step, weight=weight, bias=bias, silu=silu)
    if conv_state_indices is None:
        out = step(conv_state, tokens, cache_seqlens)
    else:
        out = in_slots(
            where, "conv_state", conv_state, "conv_state_indices", conv_state_indices, step, (tokens, cache_seqlens)
        )
    return out if x.ndim == 3 else out.squeeze(-1)


def _step(
    state: Tensor,
    x: Tensor,
    cache_seqlens: Tensor | None,
    *,
    weight: Tensor,
    bias: Tensor | None,
    silu: Literal["silu"] | None,
) -> Tensor:
    """The output of some tokens, (b, e, l), after which `state` holds them; a single one takes the kernel in place."""
    length, before = state.shape[2], weight.shape[1] - 1
    if cache_seqlens is None and before and x.shape[2] == 1:
        old = length - before
        if old:  # inputs that no tap reaches any more
            state[..., :old] = state[..., 1 : old + 1].clone()
        return conv.causal_conv1d_update(x[..., 0], state[..., old:], weight, bias, activation=silu).unsqueeze(-1)
    if cache_seqlens is None:
        out = _convolve(x, state[..., length - before :], weight, bias, silu)
        state.copy_(torch.cat((state, x.to(state.dtype)), dim=2)[..., x.shape[2] :])
        return out
    out = _convolve(x, state.gather(2, _places(state, cache_seqlens, -before, 0)), weight, bias, silu)
    newest = x[..., max(0, x.shape[2] - length) :].to(state.dtype)  # no place twice: a scatter has no order
    state.scatter_(2, _places(state, cache_seqlens, x.shape[2] - newest.shape[2], x.shape[2]), newest)
    return out


def _convolve(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: Literal["silu"] | None) -> Tensor:
    x = x.transpose(1, 2)
    out, _ = conv.causal_conv1d(x, weight, bias, activation=silu, initial_state=state, return_final_state=True)
    return out.transpose(1, 2)


def _places(ring: Tensor, tokens: Tensor, start: int, stop: int) -> Tensor:
    """The places in a ring of the tokens `start` to `stop`, counted from those that were, (b, e, stop - start)."""
    count = tokens.long()[:, None] + torch.arange(start, stop, device=ring.device)
    return (count % ring.shape[2])[:, None].expand(-1, ring.shape[1], -1)


def _check(where: str, e: int, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Raise unless weight, bias and activation are those of a convolution of `e` channels."""
    if weight.ndim != 2 or weight.shape[0] != e or weight.shape[1] == 0:
        hint = " If it is a Conv1d's (e, 1, k), pass weight.squeeze(1)." if weight.ndim == 3 else ""
        raise ShapeError(f"{where}: `weight` must be (e, k) with e = {e} and k >= 1, got {tuple(weight.shape)}.{hint}")
    if bias is not None:
        expect_shape(where, "bias", bias, "e", (e,))
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{where}: `activation` must be None, 'silu' or 'swish', got {activation!r}.")
