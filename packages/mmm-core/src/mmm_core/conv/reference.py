"""The definition of the causal convolution and of its gradient: one position after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mmm_core.arithmetic import silu_backward
from mmm_core.conv.problem import Gradients, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mmm_core.sequences import Span


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """The output (b, l, e) and the final state (b or s, e, k-1)."""
    out, state = torch.empty_like(p.x, memory_format=torch.contiguous_format), _first_windows(p)
    for span in p.spans:
        for t, window in _windows(p, span, state[span.rows].clone()):
            y = _sum(p, window)
            out[:, t] = F.silu(y) if p.silu else y
            state[span.rows] = window
    return out, state[..., 1:].to(p.x.dtype, copy=True, memory_format=torch.contiguous_format)


def backward(p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients: each window passes its gradient on to the window before, and its newest input's to x."""
    grads, state = p.new_gradients(), _first_windows(p)
    grad_state = torch.zeros_like(state)  # (b or s, e, k)
    if grad_final_state is not None:
        grad_state[..., 1:] = grad_final_state
    for span in p.spans:
        grad_window = grad_state[span.rows]
        for t, window in reversed(list(_windows(p, span, state[span.rows]))):
            grad_y = grad_out[:, t].to(p.dtype)  # (b, e)
            if p.silu:
                grad_y = silu_backward(_sum(p, window), grad_y)
            grads.weight.add_((grad_y[..., None] * window).sum(0))
            if p.bias is not None:
                grads.bias.add_(grad_y.sum(0))
            grad_window = grad_window + grad_y[..., None] * p.weight.to(p.dtype)
            grads.x[:, t] = grad_window[..., -1]
            grad_window = F.pad(grad_window[..., :-1], (1, 0))
        grad_state[span.rows] = grad_window
    return grads._replace(initial_state=grads.initial_state if p.initial_state is None else grad_state[..., 1:])


def _first_windows(p: Problem) -> Tensor:
    """The k inputs that end before the first position, (b or s, e, k): the state behind one more that nobody reads."""
    b, e, taps = p.state_shape
    windows = p.x.new_zeros((b, e, taps + 1), dtype=p.dtype)
    if p.initial_state is not None:
        windows[..., 1:] = p.initial_state
    return windows


def _windows(p: Problem, span: Span, window: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each position in the direction of the convolution, with the k inputs that end there, (b, e, k)."""
    positions = range(span.start, span.stop)
    for t in reversed(positions) if p.reverse else positions:
        window = torch.cat((window[..., 1:], p.x[:, t, :, None].to(p.dtype)), dim=-1)
        yield t, window


def _sum(p: Problem, window: Tensor) -> Tensor:
    y = (window * p.weight.to(p.dtype)).sum(-1)
    return y if p.bias is None else y + p.bias.to(p.dtype)
