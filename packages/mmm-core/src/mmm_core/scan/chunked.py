"""The selective scan in pure torch, on any device: whole-tensor work by chunks of `l`, one fused step a position.

A chunk's decays and inputs are made at once, `(c, b, g, n, f)` with the channels of a group innermost so that they are
what the hardware's vectors run along; the recurrence itself is one `addcmul` a position. The forward keeps the state
that enters each chunk, the backward recomputes a chunk from it: neither holds an `(l, e, n)` tensor.
README.md has the maths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from mmm_core.scan.problem import Gradients, Problem, gate_backward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mmm_core.sequences import Span

CHUNK = 32  # positions
TILE = 1 << 19  # elements (c, b, g, n, f) that a CPU works on at a time: what its caches hold


class _Run(NamedTuple):
    """The part of one sequence that falls into a chunk: steps `first` to `last` of the chunk, both inside it."""

    first: int
    last: int
    rows: slice  # of the states
    begins: bool  # the sequence begins with this run
    ends: bool


class _Chunk(NamedTuple):
    """Positions `start` to `stop` and the runs in them; steps count in the direction of the scan."""

    start: int
    stop: int
    runs: list[_Run]


def checkpoint_shape(p: Problem) -> tuple[int, ...]:
    """One state for each chunk, that which enters it, behind each other: one axis that torch.export leaves free."""
    b, l, e, _, n = p.sizes
    return (b, (l + CHUNK - 1) // CHUNK * e * n)


def forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, l, e), the final state (b or k, e, n), and the checkpoints where they are asked for."""
    out, state = torch.empty_like(p.u, memory_format=torch.contiguous_format), p.first_states()
    checkpoints = state.new_empty(checkpoint_shape(p) if save else (0,))
    A, chunks, states = _inner_A(p), _chunks(p), _to_inner(p, state)
    for rows, tile_states in _tiles(p, states):
        h = states.new_zeros(1, *states.shape[1:])
        for chunk in chunks:
            if save:
                _entering(p, checkpoints, rows, chunk)[:] = h
            work = _Work(p, A, rows, chunk)
            h = work.recur(h, tile_states)
            for run in chunk.runs:
                if run.ends:
                    tile_states[run.rows] = work.h[run.last]
            y = work.output()
            work.store(out, y if p.z is None else y.mul_(F.silu(work.load(p.z))))
    return out, _from_inner(states), checkpoints


def backward(p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input: chunks from last to first, each recomputed from the state that enters it."""
    grads, state = p.new_gradients(), p.first_states()
    grad_state = torch.zeros_like(state) if grad_final_state is None else grad_final_state.to(p.dtype, copy=True)
    A, chunks, states, grad_states = _inner_A(p), _chunks(p), _to_inner(p, state), _to_inner(p, grad_state)
    grad_A = _to_inner(p, grads.A[None])[0]  # (g, n, f)
    for (rows, tile_states), (_, tile_grads) in zip(_tiles(p, states), _tiles(p, grad_states), strict=True):
        carry = states.new_zeros(1, *states.shape[1:])
        for chunk in reversed(chunks):
            work = _Work(p, A, rows, chunk)
            entering = _entering(p, checkpoints, rows, chunk)
            work.recur(entering, tile_states)
            grad_y = work.output_backward(grad_out, grads)
            grad_h, carry = work.recur_backward(grad_y, carry, tile_grads)
            work.inputs_backward(grad_y, grad_h, entering, tile_states, grads, grad_A)
    return grads._replace(
        A=_from_inner(grad_A[None])[0],
        initial_state=grads.initial_state if p.initial_state is None else _from_inner(grad_states),
    )


class _Work:
    """A chunk of a tile of rows: its inputs and states, time first, and what is computed from them."""

    def __init__(self, p: Problem, A: Tensor, rows: slice, chunk: _Chunk) -> None:
        self.p, self.A, self.rows, self.chunk = p, A, rows, chunk  # A: (g, n, f)
        self.raw_delta = self.load(p.delta)
        self.u, self.delta = self.load(p.u), p.step_size(self.raw_delta)  # (c, b, e)
        self.B, self.C = self.load(p.B), self.load(p.C)  # (c, b, g, n)
        delta, self.input = self.grouped(self.delta), self.grouped(self.delta * self.u)  # (c, b, g, f)
        self.decay = (delta[..., None, :] * self.A).exp_()  # (c, b, g, n, f)
        self.h = self.input[..., None, :] * self.B[..., None]  # (c, b, g, n, f): the inputs, made states by `recur`

    def recur(self, h: Tensor, states: Tensor) -> Tensor:
        """Run the recurrence over `self.h` in place, from the entering state `h`; return the leaving one."""
        for run in self.chunk.runs:
            h = states[run.rows] if run.begins else h
            for i in range(run.first, run.last + 1):
                h = torch.addcmul(self.h[i], self.decay[i], h, out=self.h[i])
        return h

    def output(self) -> Tensor:
        """The ungated output, (c, b, e)."""
        y = (self.C[..., None, :] @ self.h).flatten(2)
        return y if self.p.D is None else y.addcmul_(self.u, self.p.D.to(self.p.dtype))

    def output_backward(self, grad_out: Tensor, grads: Gradients) -> Tensor:
        """Store the gradients of z and C, add that of D; return that of the ungated output, (c, b, e)."""
        grad_y = self.load(grad_out)
        if self.p.z is not None:
            grad_y, grad_z = gate_backward(self.output(), self.load(self.p.z), grad_y)
            self.store(grads.z, grad_z)
        self.store(grads.C, (self.h @ self.grouped(grad_y)[..., None]).squeeze(-1))
        if self.p.D is not None:
            grads.D.add_((grad_y * self.u).sum((0, 1)))
        return grad_y

    def recur_backward(self, grad_y: Tensor, carry: Tensor, grad_states: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of each state in the chunk, and of the state that enters it; `carry` is of that which leaves."""
        grad_h = self.C[..., None] * self.grouped(grad_y)[..., None, :]  # (c, b, g, n, f)
        for run in reversed(self.chunk.runs):
            grad_h[run.last] += grad_states[run.rows] if run.ends else carry
            for i in range(run.last - 1, run.first - 1, -1):
                torch.addcmul(grad_h[i], self.decay[i + 1], grad_h[i + 1], out=grad_h[i])
            carry = self.decay[run.first] * grad_h[run.first]
            if run.begins:
                grad_states[run.rows] = carry
        return grad_h, carry

    def inputs_backward(
        self, grad_y: Tensor, grad_h: Tensor, h: Tensor, states: Tensor, grads: Gradients, grad_A: Tensor
    ) -> None:
        """Store the gradients of u, delta and B, add those of A and delta's bias."""
        p = self.p
        self.store(grads.B, (grad_h @ self.input[..., None]).squeeze(-1))
        grad_input = (self.B[..., None, :] @ grad_h).flatten(2)  # (c, b, e)
        exponent = grad_h.mul_(self.decay)  # becomes the gradient of delta * A
        for run in self.chunk.runs:
            exponent[run.first] *= states[run.rows] if run.begins else h
            exponent[run.first + 1 : run.last + 1] *= self.h[run.first : run.last]
        grad_delta = (exponent * self.A).sum(-2).flatten(2).addcmul_(grad_input, self.u)
        grad_delta = p.step_size_backward(self.raw_delta, grad_delta)
        self.store(grads.delta, grad_delta)
        grad_A.add_(exponent.mul_(self.grouped(self.delta)[..., None, :]).sum((0, 1)))
        if p.delta_bias is not None:
            grads.delta_bias.add_(grad_delta.sum((0, 1)))
        grad_u = grad_input.mul_(self.delta)
        self.store(grads.u, grad_u if p.D is None else grad_u.addcmul_(grad_y, p.D.to(p.dtype)))

    def load(self, x: Tensor) -> Tensor:
        """The chunk of `x` in the dtype of the arithmetic, (c, b, ...), in the direction of the scan."""
        x = x[self.rows, self.chunk.start : self.chunk.stop].transpose(0, 1).to(self.p.dtype)
        return x.flip(0) if self.p.reverse else x.contiguous()

    def store(self, target: Tensor, x: Tensor) -> None:
        """The inverse of `load`: write (c, b, ...) to the chunk's positions in `target`."""
        x = x.flip(0) if self.p.reverse else x
        target[self.rows, self.chunk.start : self.chunk.stop] = x.transpose(0, 1)

    def grouped(self, x: Tensor) -> Tensor:
        """Split the channels into groups, (c, b, e) to (c, b, g, f)."""
        g, _, f = self.A.shape
        return x.view(*x.shape[:-1], g, f)


def _chunks(p: Problem) -> list[_Chunk]:
    """The chunks in the direction of the scan."""
    l = p.u.shape[1]
    chunks = [_Chunk(start, min(start + CHUNK, l), []) for start in range(0, l, CHUNK)]
    for span in p.spans[::-1] if p.reverse else p.spans:
        if span.start < span.stop:
            for chunk in chunks[span.start // CHUNK : (span.stop - 1) // CHUNK + 1]:
                chunk.runs.append(_run(span, chunk.start, chunk.stop, p.reverse))
    return chunks[::-1] if p.reverse else chunks


def _run(span: Span, start: int, stop: int, reverse: bool) -> _Run:
    low, high = max(span.start, start), min(span.stop, stop)
    left, right = low == span.start, high == span.stop
    if reverse:
        return _Run(stop - high, stop - 1 - low, span.rows, begins=right, ends=left)
    return _Run(low - start, high - 1 - start, span.rows, begins=left, ends=right)


def _tiles(p: Problem, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows to work on at a time, with the states that their runs speak of."""
    b, l, e, _, n = p.sizes
    step = max(1, TILE // max(1, min(l, CHUNK) * e * n) if p.u.device.type == "cpu" else b)
    for start in range(0, b, step):
        tile = slice(start, start + step)
        yield tile, states[tile] if p.cu_seqlens is None else states


def _entering(p: Problem, checkpoints: Tensor, rows: slice, chunk: _Chunk) -> Tensor:
    """The state that enters a chunk, (b, g, n, f), a view of its checkpoint."""
    _, _, e, g, n = p.sizes
    start = chunk.start // CHUNK * e * n
    state = checkpoints[rows, start : start + e * n]
    return state.view(state.shape[0], g, n, e // g)


def _inner_A(p: Problem) -> Tensor:
    """A as the chunks use it, (g, n, f)."""
    return _to_inner(p, p.A[None].to(p.dtype))[0]


def _to_inner(p: Problem, state: Tensor) -> Tensor:
    """(s, e, n) to (s, g, n, f), the channels of a group innermost."""
    _, _, e, g, n = p.sizes
    return state.view(state.shape[0], g, e // g, n).transpose(-1, -2).contiguous()


def _from_inner(state: Tensor) -> Tensor:
    """The inverse of `_to_inner`."""
    return state.transpose(-1, -2).flatten(1, 2).contiguous()
