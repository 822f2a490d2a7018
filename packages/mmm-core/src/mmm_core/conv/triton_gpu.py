"""The causal convolution in Triton, on GPUs.

The kernels are in `triton_kernels`; here their calls are laid out. Nothing is added up by atomics: each tile writes its
part of the gradients of weight and bias, and the parts are summed in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.conv import triton_kernels
from mmm_core.conv.problem import Gradients, Problem
from mmm_core.sequences import bounds_on, state_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ELEMENTS = 4096  # of a tile
MOST_CHANNELS = 64  # of a tile: a cache line of a half dtype


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """The output (b, l, e) and the final state (b or s, e, k-1)."""
    out = torch.empty_like(p.x, memory_format=torch.contiguous_format)
    state = p.x.new_empty(p.state_shape)
    _launch(triton_kernels.forward, p, out, state)
    return out, state


def backward(p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input."""
    grads = Gradients(*(p.room(x) for x in p.floating))
    rows, _ = tile(p)
    e, k = p.weight.shape
    parts = p.x.new_empty((p.x.shape[0] * triton.cdiv(p.x.shape[1], rows), k + 1, e), dtype=p.dtype)
    final = () if grad_final_state is None else grad_final_state.stride()
    initial = None if p.initial_state is None else grads.initial_state
    _launch(
        triton_kernels.backward,
        p,
        grad_out,
        *grad_out.stride(),
        grad_final_state,
        *(final or (0, 0, 0)),
        grads.x,
        initial,
        parts,
    )
    sums = parts.sum(0)  # (k+1, e)
    return grads._replace(weight=sums[:k].T, bias=grads.bias if p.bias is None else sums[k])


def update(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """The output of one position, (b, e); `state` goes from that before it to that after it."""
    b, e = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    columns = 256
    programs = b * triton.cdiv(e, columns)
    if programs:
        with torch.cuda.device_of(x):
            triton_kernels.update[(programs,)](
                *(x, *x.stride(), weight, *weight.stride(), bias, 0 if bias is None else bias.stride(0)),
                *(state, *state.stride(), out, e, weight.shape[1], silu),
                _wide(arithmetic_dtype((x, weight, bias, state))),
                columns,
            )
    return out


def tile(p: Problem) -> tuple[int, int]:
    """Positions and channels of a tile, powers of two."""
    _, l, e = p.x.shape
    columns = min(MOST_CHANNELS, triton.next_power_of_2(max(e, 1)))
    return min(ELEMENTS // columns, triton.next_power_of_2(max(l, 1))), columns


def _launch(kernel: Callable[..., None], p: Problem, *arguments: Tensor | int | None) -> None:
    """Run a kernel over the tiles of a call and its states."""
    b, l, e = p.x.shape
    rows, columns = tile(p)
    bounds = bounds_on(p.x.device, "causal_conv1d", l, p.cu_seqlens)
    sequences = 0 if p.cu_seqlens is None else state_rows(b, p.cu_seqlens)
    states = (sequences if p.cu_seqlens is not None else 1) if p.weight.shape[1] > 1 else 0  # a row of the batch
    programs = b * (triton.cdiv(l, rows) + states) * triton.cdiv(e, columns)
    if programs == 0:
        return
    tensors: list[Tensor | int | None] = []
    for x, axes in zip(p.floating, (3, 2, 1, 3), strict=True):
        tensors += (x, *((0,) * axes if x is None else x.stride()))
    with torch.cuda.device_of(p.x):
        kernel[(programs,)](  # type: ignore[index]
            *tensors,
            bounds,
            sequences,
            sequences.bit_length(),
            *arguments,
            l,
            e,
            states,
            K=p.weight.shape[1],
            SILU=p.silu,
            REVERSE=p.reverse,
            WIDE=_wide(p.dtype),
            ROWS=rows,
            COLUMNS=columns,
        )


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
