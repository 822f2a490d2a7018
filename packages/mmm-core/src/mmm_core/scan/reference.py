"""The definition of the selective scan and of its gradient: one step after the other, over whole states.

Clear, not fast, and its backward keeps every state; `chunked` is the pure-torch backend to use.
README.md has the maths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mmm_core.scan.problem import Gradients, Problem, gate_backward

if TYPE_CHECKING:
    from torch import Tensor

    from mmm_core.sequences import Span


def checkpoint_shape(p: Problem) -> tuple[int, ...]:
    """Nothing is kept for the backward: it starts over from the initial state."""
    return (0,)


def forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, l, e), the final state (b or k, e, n), and the empty checkpoints."""
    out, state = torch.empty_like(p.u, memory_format=torch.contiguous_format), p.first_states()
    for span in p.spans:
        h = state[span.rows]
        for t in _positions(span, p.reverse):
            h, y = _step(p, t, h)
            out[:, t] = y if p.z is None else y * F.silu(p.z[:, t].to(p.dtype))
        state[span.rows] = h
    return out, state, state.new_empty(checkpoint_shape(p))


def backward(p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients by the adjoint recurrence, over the states of a second forward."""
    grads, state = p.new_gradients(), p.first_states()
    grad_state = torch.zeros_like(state) if grad_final_state is None else grad_final_state.to(p.dtype, copy=True)
    for span in p.spans:
        positions = _positions(span, p.reverse)
        states = [state[span.rows]]  # before each position, then after the last
        for t in positions:
            states.append(_step(p, t, states[-1])[0])
        g = grad_state[span.rows]
        for t in reversed(positions):
            after, before = states.pop(), states[-1]
            g = _step_backward(p, t, before, after, g, grad_out, grads)
        grad_state[span.rows] = g
    return grads._replace(initial_state=grad_state if p.initial_state is not None else grads.initial_state)


def _positions(span: Span, reverse: bool) -> range:
    return range(span.stop - 1, span.start - 1, -1) if reverse else range(span.start, span.stop)


def _over_channels(p: Problem, x: Tensor, t: int) -> Tensor:
    """B or C at position t for each channel, (b, e, n)."""
    _, _, e, g, _ = p.sizes
    return x[:, t].to(p.dtype).repeat_interleave(e // g, dim=1)


def _over_groups(p: Problem, x: Tensor) -> Tensor:
    """The sum of (b, e, n) over the channels of each group, (b, g, n)."""
    _, _, e, g, _ = p.sizes
    return x.view(x.shape[0], g, e // g, x.shape[-1]).sum(2)


def _step(p: Problem, t: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """The state after position t, (b, e, n), and the ungated output there, (b, e)."""
    u, delta = p.u[:, t].to(p.dtype), p.step_size(p.delta[:, t])
    B, C = _over_channels(p, p.B, t), _over_channels(p, p.C, t)
    h = torch.exp(delta[..., None] * p.A.to(p.dtype)) * h + (delta * u)[..., None] * B
    y = (h * C).sum(-1)
    return h, y if p.D is None else y + p.D.to(p.dtype) * u


def _step_backward(
    p: Problem, t: int, before: Tensor, after: Tensor, g: Tensor, grad_out: Tensor, grads: Gradients
) -> Tensor:
    """Add what position t gives to `grads`; from the gradient of the state after t, return that of the state before."""
    u, delta, A = p.u[:, t].to(p.dtype), p.step_size(p.delta[:, t]), p.A.to(p.dtype)
    B, C = _over_channels(p, p.B, t), _over_channels(p, p.C, t)
    y, grad_y = (after * C).sum(-1), grad_out[:, t].to(p.dtype)
    if p.D is not None:
        y = y + p.D.to(p.dtype) * u
    if p.z is not None:
        grad_y, grads.z[:, t] = gate_backward(y, p.z[:, t].to(p.dtype), grad_y)
    g = g + grad_y[..., None] * C
    decay = torch.exp(delta[..., None] * A)
    grad_exponent = g * before * decay  # (b, e, n): of delta * A
    grad_input = (g * B).sum(-1)  # (b, e): of delta * u
    grad_delta = p.step_size_backward(p.delta[:, t], (grad_exponent * A).sum(-1) + grad_input * u)
    grads.A.add_((grad_exponent * delta[..., None]).sum(0))
    grads.B[:, t] = _over_groups(p, g * (delta * u)[..., None])
    grads.C[:, t] = _over_groups(p, grad_y[..., None] * after)
    grad_u = grad_input * delta
    if p.D is not None:
        grad_u = grad_u + grad_y * p.D.to(p.dtype)
        grads.D.add_((grad_y * u).sum(0))
    grads.u[:, t] = grad_u
    grads.delta[:, t] = grad_delta
    if p.delta_bias is not None:
        grads.delta_bias.add_(grad_delta.sum(0))
    return g * decay
