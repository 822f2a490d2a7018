"""The causal convolution in operators that every runtime has; see the scan's module of that name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm_core.conv.problem import Problem
from mmm_core.sequences import sequence_of


def decomposition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output and final state."""
    p = Problem(x, weight, bias, initial_state, cu_seqlens, silu, reverse)
    state = x.new_zeros(p.state_shape) if initial_state is None else initial_state
    x, state = x.transpose(1, 2).to(p.dtype), state.to(p.dtype)
    if reverse:
        x = x.flip(2)
    y, state = (_convolve if cu_seqlens is None else _convolve_packed)(p, x, state)
    y = F.silu(y) if silu else y
    y = y.flip(2) if reverse else y
    return y.transpose(1, 2).to(p.x.dtype).contiguous(), state.to(p.x.dtype).contiguous()


def _convolve(p: Problem, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The sums, (b, e, l), over x with the state before it; and the last of that row."""
    row = torch.cat((state, x), dim=2)
    return _sum(p, row), row[:, :, x.shape[2] :]


def _convolve_packed(p: Problem, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same for sequences in one row: each of them has its state before it, and so the next is far enough away."""
    assert p.cu_seqlens is not None
    sequences, _, before = p.state_shape
    l = x.shape[2]
    bounds = p.cu_seqlens.to(torch.int64)
    if p.reverse:
        bounds, state = l - bounds.flip(0), state.flip(0)
    shift = before * torch.arange(sequences, device=x.device)  # of a sequence, by the states of those before it
    tokens = torch.arange(l, device=x.device) + shift.index_select(0, sequence_of(bounds, l))
    taps = torch.arange(before, device=x.device)
    first, last = ((edge + shift)[:, None] + taps for edge in (bounds[:-1], bounds[1:]))  # (s, k-1)
    row = x.new_zeros(1, x.shape[1], l + before * sequences)
    row = row.index_copy(2, tokens + before, x)
    row = row.index_copy(2, first.flatten(), state.transpose(0, 1).flatten(1)[None])
    y = _sum(p, row).index_select(2, tokens)
    state = row[0].index_select(1, last.flatten()).unflatten(1, (sequences, before)).transpose(0, 1)
    return y, state.flip(0) if p.reverse else state


def _sum(p: Problem, row: Tensor) -> Tensor:
    bias = None if p.bias is None else p.bias.to(p.dtype)
    return F.conv1d(row, p.weight.to(p.dtype)[:, None], bias, groups=p.weight.shape[0])
