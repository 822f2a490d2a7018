"""The selective scan in the native library: vectors along the channels, chunks of `l` in registers and cache.

The kernel is `native/scan.inl`; here its call is laid out, in the order of `native/abi.h`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.native_library import SCAN_CHUNK, array, call, sequences, token
from mmm_core.scan.problem import Gradients, Problem
from mmm_core.sequences import whole_bounds

if TYPE_CHECKING:
    from torch import Tensor


def checkpoint_shape(p: Problem) -> tuple[int, ...]:
    """The state that enters each chunk of each sequence, one behind the other."""
    b, l, e, _, n = p.sizes
    chunks = (l + SCAN_CHUNK - 1) // SCAN_CHUNK + (0 if p.cu_seqlens is None else p.cu_seqlens.shape[0])
    return (b, chunks * e * n)


def forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, l, e), the final state (b or k, e, n), and the checkpoints where they are asked for."""
    out = torch.empty_like(p.u, memory_format=torch.contiguous_format)
    state = p.u.new_empty(p.state_shape, dtype=p.dtype)
    room = p.u.new_empty if p.cu_seqlens is None else p.u.new_zeros  # packed sequences leave some of it unwritten
    checkpoints = room(checkpoint_shape(p) if save else (0,), dtype=p.dtype)
    run(p, out, state, checkpoints)
    return out, state, checkpoints


def run(p: Problem, out: Tensor, final_state: Tensor, checkpoints: Tensor | None) -> None:
    """The forward into tensors that are there; `final_state` may be the initial state."""
    bounds = whole_bounds("selective_scan", p.u.shape[1], p.cu_seqlens, p.u.device)
    call("mmm_core_scan", _words(p, bounds, out, final_state, checkpoints))


def backward(p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input, each in its input's dtype."""
    grads = Gradients(*(p.room(x) for x in p.floating))
    bounds = whole_bounds("selective_scan", p.u.shape[1], p.cu_seqlens, p.u.device)
    words = [*_words(p, bounds, None, None, checkpoints), *array(grad_out), *array(grad_final_state)]
    for grad in grads:
        words += array(grad)
    call("mmm_core_scan_backward", words)
    return grads


def update(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The output of one position, (b, e); `state` goes from that before it to that after it."""
    b, e = u.shape
    groups = 1 if B.ndim == 2 else B.shape[1]
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    wide = arithmetic_dtype((u, delta, A, B, C, D, z, delta_bias, state)) == torch.float64
    words = [wide, *sequences(b, 1, None, False), e, groups, A.shape[1], delta_softplus, False]
    before = after = array(state)
    words += token(u) + token(delta) + array(A) + token(B, 4) + token(C, 4)
    words += array(D) + token(z) + array(delta_bias) + before + token(out) + after + array(None)
    call("mmm_core_update", words)
    return out


def _words(
    p: Problem, bounds: Tensor | None, out: Tensor | None, final_state: Tensor | None, checkpoints: Tensor | None
) -> list[int]:
    """`ScanCall` of native/abi.h; `bounds` must outlive the call."""
    b, l, e, g, n = p.sizes
    words = [p.dtype == torch.float64, *sequences(b, l, bounds, p.reverse), e, g, n, p.delta_softplus, False]
    for x in (*p.floating, out, final_state, checkpoints):
        words += array(x)
    return words
