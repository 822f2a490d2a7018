"""The causal convolution in pure torch, on any device: one multiply-add over the whole length a tap.

A sequence's inputs stand in one row with its initial state before them (behind them where the direction is reverse);
each tap is then a shifted view of that row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mmm_core.arithmetic import silu_backward
from mmm_core.conv.problem import Gradients, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from mmm_core.sequences import Span


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """The output (b, l, e) and the final state (b or s, e, k-1)."""
    out = torch.empty_like(p.x, memory_format=torch.contiguous_format)
    state = p.x.new_empty(p.state_shape)
    for span in p.spans:
        row = _row(p, span)
        y = _sum(p, row)
        out[:, span.start : span.stop] = F.silu(y, inplace=True) if p.silu else y
        state[span.rows] = _in_order(p, _last(p, row)).transpose(1, 2)
    return out, state


def backward(p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input, through that of the row."""
    grads = p.new_gradients()
    taps = p.weight.shape[1]
    for span in p.spans:
        row = _row(p, span)
        grad_y = grad_out[:, span.start : span.stop].to(p.dtype)
        if p.silu:
            grad_y = silu_backward(_sum(p, row), grad_y)
        grad_row = torch.zeros_like(row)
        for j in range(taps):
            _shifted(p, grad_row, j).addcmul_(grad_y, p.weight[:, j].to(p.dtype))
            grads.weight[:, j] += (grad_y * _shifted(p, row, j)).sum((0, 1))
        if grad_final_state is not None:
            _last(p, grad_row).add_(_in_order(p, grad_final_state[span.rows].transpose(1, 2)))
        if p.bias is not None:
            grads.bias.add_(grad_y.sum((0, 1)))
        if p.initial_state is not None:
            grads.initial_state[span.rows] = _in_order(p, _first(p, grad_row)).transpose(1, 2)
        grads.x[:, span.start : span.stop] = _inputs(p, grad_row)
    return grads


def _row(p: Problem, span: Span) -> Tensor:
    """The inputs of a sequence with its initial state before them, (b, k-1+l, e)."""
    x = p.x[:, span.start : span.stop].to(p.dtype)
    if p.initial_state is None:
        before = x.new_zeros(x.shape[0], p.state_shape[-1], x.shape[-1])
    else:
        before = _in_order(p, p.initial_state[span.rows].to(p.dtype).transpose(1, 2))
    return torch.cat((x, before) if p.reverse else (before, x), dim=1)


def _sum(p: Problem, row: Tensor) -> Tensor:
    """The convolution before its activation, (b, l, e)."""
    y = _shifted(p, row, 0) * p.weight[:, 0].to(p.dtype)
    for j in range(1, p.weight.shape[1]):
        y.addcmul_(_shifted(p, row, j), p.weight[:, j].to(p.dtype))
    return y if p.bias is None else y.add_(p.bias.to(p.dtype))


def _shifted(p: Problem, row: Tensor, tap: int) -> Tensor:
    """What a tap sees, (b, l, e): tap 0 the oldest inputs, the last tap the positions themselves."""
    before = p.state_shape[-1]
    offset = before - tap if p.reverse else tap
    return row[:, offset : offset + row.shape[1] - before]


def _inputs(p: Problem, row: Tensor) -> Tensor:
    return _shifted(p, row, p.state_shape[-1])


def _first(p: Problem, row: Tensor) -> Tensor:
    """The initial state's part of a row, (b, k-1, e), from left to right."""
    before = p.state_shape[-1]
    return row[:, row.shape[1] - before :] if p.reverse else row[:, :before]


def _last(p: Problem, row: Tensor) -> Tensor:
    """The final state's part of a row, (b, k-1, e), from left to right."""
    before = p.state_shape[-1]
    return row[:, :before] if p.reverse else row[:, row.shape[1] - before :]


def _in_order(p: Problem, state: Tensor) -> Tensor:
    """(b, k-1, e) from left to right made oldest first, or back."""
    return state.flip(1) if p.reverse else state
