"""The causal convolution in Triton, on GPUs.

The kernels are in `triton_kernels`; here their calls are laid out. Nothing is added up by atomics: each tile writes its
part of the gradients of weight and bias, and the parts are summed in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.conv import triton_kernels
from mmm_core.conv.problem import Gradients, Problem
from mmm_core.sequences import state_rows, whole_bounds

if TYPE_CHECKING:
    from torch import Tensor

STEP_CHANNELS = 256  # of a program of a single step
STEP_UNROLL = 4


class Config(NamedTuple):
    """How a call falls into tiles, and how a tile is worked on."""

    elements: int  # of a tile, a power of two
    channels: int  # the most of a tile, likewise
    warps: int
    unroll: int  # taps of a loop's body

    def tile(self, l: int, e: int) -> tuple[int, int]:
        """Positions and channels of a tile."""
        channels = min(self.channels, triton.next_power_of_2(max(e, 1)))
        return min(self.elements // channels, triton.next_power_of_2(max(l, 1))), channels


FORWARD = Config(elements=2048, channels=128, warps=2, unroll=4)
BACKWARD = Config(elements=1024, channels=128, warps=1, unroll=1)  # its sums over positions stay in a warp


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """The output (b, l, e) and the final state (b or s, e, k-1)."""
    out = torch.empty_like(p.x, memory_format=torch.contiguous_format)
    state = p.x.new_empty(p.state_shape)
    call = _Call(p, FORWARD)
    call.run(triton_kernels.forward, call.inputs, call.sequences, out, state, states=True, SILU=p.silu)
    return out, state


def backward(p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input: first that of the sums before their activation, in full precision."""
    grads = Gradients(*(p.room(x) for x in p.floating))
    call = _Call(p, BACKWARD)
    e, k = p.weight.shape
    parts = p.x.new_empty((call.tiles, k + 1, e), dtype=p.dtype)
    grad_sum = torch.empty_like(p.x, dtype=p.dtype, memory_format=torch.contiguous_format) if p.silu else grad_out
    incoming = _strided(grad_out, 3)
    call.run(triton_kernels.backward_of_sums, call.inputs, call.sequences, *incoming, grad_sum, parts, SILU=p.silu)
    given = (*_strided(grad_sum, 3), *_strided(grad_final_state, 3))
    initial = None if p.initial_state is None else grads.initial_state
    call.run(
        triton_kernels.backward_of_inputs, _strided(p.weight, 2), call.sequences, *given, grads.x, initial, states=True
    )
    sums = parts.sum(0)  # (k+1, e)
    return grads._replace(weight=sums[:k].T, bias=grads.bias if p.bias is None else sums[k].clone())


def update(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """The output of one position, (b, e); `state` goes from that before it to that after it."""
    b, e = x.shape
    k = weight.shape[1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    programs = b * triton.cdiv(e, STEP_CHANNELS)
    tensors = (*_strided(x, 2), *_strided(weight, 2), *_strided(bias, 1), *_strided(state, 3), out)
    wide = _wide(arithmetic_dtype((x, weight, bias, state)))
    if programs:
        with torch.cuda.device_of(x):
            triton_kernels.update[(programs,)](
                *tensors, e, k, min(k, STEP_UNROLL), silu, wide, STEP_CHANNELS, enable_fp_fusion=True
            )
    return out


class _Call:
    """What the kernels of a call have in common: its inputs, its sequences, and how it falls into tiles."""

    def __init__(self, p: Problem, config: Config) -> None:
        b, l, e = p.x.shape
        bounds = whole_bounds("causal_conv1d", l, p.cu_seqlens, p.x.device)
        count = state_rows(b, p.cu_seqlens)
        self._p, self._config = p, config
        self.inputs = [word for x, axes in zip(p.floating, (3, 2, 1, 3), strict=True) for word in _strided(x, axes)]
        self.sequences = (bounds, count, count.bit_length())
        self._rows, self._columns = config.tile(l, e)
        self._states = 1 if bounds is None else count  # of a row of the batch
        self.tiles = b * triton.cdiv(l, self._rows)

    def run(self, kernel: Any, *arguments: Any, states: bool = False, **options: Any) -> None:
        """Launch a program for each tile, and with `states` one for each state and block of channels."""
        p = self._p
        (b, l, e), k = p.x.shape, p.weight.shape[1]
        per_row = self._states if states and k > 1 else 0
        programs = (self.tiles + b * per_row) * triton.cdiv(e, self._columns)
        if programs == 0:
            return
        inputs, sequences, *others = arguments
        with torch.cuda.device_of(p.x):
            kernel[(programs,)](
                *(*inputs, *sequences, *others, l, e, per_row),
                K=k,
                UNROLL=min(k, self._config.unroll),
                REVERSE=p.reverse,
                WIDE=_wide(p.dtype),
                ROWS=self._rows,
                COLUMNS=self._columns,
                num_warps=self._config.warps,
                enable_fp_fusion=True,
                **options,
            )


def _strided(x: Tensor | None, axes: int) -> tuple[Any, ...]:
    """A tensor and its strides, as the kernels take it."""
    return (None, *(0,) * axes) if x is None else (x, *x.stride())


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
