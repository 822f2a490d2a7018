"""The causal convolution in the native library.

The kernel is `native/conv.inl`; here its call is laid out, in the order of `native/abi.h`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.conv.problem import Gradients, Problem
from mmm_core.native_library import array, call, sequences, token
from mmm_core.sequences import whole_bounds

if TYPE_CHECKING:
    from torch import Tensor


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """The output (b, l, e) and the final state (b or s, e, k-1)."""
    out = torch.empty_like(p.x, memory_format=torch.contiguous_format)
    state = p.x.new_empty(p.state_shape)
    run(p, out, state)
    return out, state


def run(p: Problem, out: Tensor, final_state: Tensor) -> None:
    """The forward into tensors that are there; `final_state` may be the initial state."""
    bounds = whole_bounds("causal_conv1d", p.x.shape[1], p.cu_seqlens, p.x.device)
    call("mmm_core_conv", _words(p, bounds, out, final_state))


def backward(p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input, each in its input's dtype."""
    grads = Gradients(*(p.room(x) for x in p.floating))
    bounds = whole_bounds("causal_conv1d", p.x.shape[1], p.cu_seqlens, p.x.device)
    words = [*_words(p, bounds, None, None), *array(grad_out), *array(grad_final_state)]
    for grad in grads:
        words += array(grad)
    call("mmm_core_conv_backward", words)
    return grads


def update(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """The output of one position, (b, e); `state` goes from that before it to that after it."""
    b, e = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    wide = arithmetic_dtype((x, weight, bias, state)) == torch.float64
    words = [wide, *sequences(b, 1, None, False), e, weight.shape[1], silu]
    before = after = array(state)
    words += token(x) + array(weight) + array(bias) + before + token(out) + after
    call("mmm_core_conv", words)
    return out


def _words(p: Problem, bounds: Tensor | None, out: Tensor | None, final_state: Tensor | None) -> list[int]:
    """`ConvCall` of native/abi.h; `bounds` must outlive the call."""
    b, l, e = p.x.shape
    words = [p.dtype == torch.float64, *sequences(b, l, bounds, p.reverse), e, p.weight.shape[1], p.silu]
    for x in (*p.floating, out, final_state):
        words += array(x)
    return words
