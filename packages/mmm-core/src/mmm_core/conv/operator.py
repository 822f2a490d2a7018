"""The causal convolution as one `torch.library` operator, with its fake kernel and its gradient."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmm_core.arithmetic import autocast_off
from mmm_core.backends import Modules
from mmm_core.conv import chunked, native, reference
from mmm_core.conv.problem import Gradients, Problem
from mmm_core.eager import differentiable
from mmm_core.gradients import fake, handed_over, refuse_second, taken

if TYPE_CHECKING:
    from collections.abc import Callable


class Backend(Protocol):
    """What a module in this folder must have to be one."""

    def forward(self, p: Problem) -> tuple[Tensor, Tensor]:
        """Output and final state."""

    def backward(self, p: Problem, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
        """The gradients."""


BACKENDS: Modules[Backend] = Modules("mmm_core.conv", {"native": native, "chunked": chunked, "reference": reference})


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output and final state of a call."""
    p = Problem(x, weight, bias, initial_state, cu_seqlens, silu, reverse)
    with autocast_off(x):
        return BACKENDS[backend].forward(p)


causal_conv1d = torch.library.custom_op("mmm_core::causal_conv1d", forward, mutates_args=())


@causal_conv1d.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    *call, _ = arguments
    p = Problem(*call)
    return p.x.new_empty(p.x.shape), p.x.new_empty(p.state_shape)


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    grad_out: Tensor,
    grad_final_state: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the floating inputs, each in its input's dtype; empty where the input is absent."""
    p = Problem(x, weight, bias, initial_state, cu_seqlens, silu, reverse)
    with autocast_off(x):
        grads = BACKENDS[backend].backward(p, grad_out, grad_final_state)
    return Gradients(*handed_over(grads, p.floating))


causal_conv1d_backward = torch.library.custom_op("mmm_core::causal_conv1d_backward", backward, mutates_args=())
causal_conv1d_backward.register_autograd(refuse_second)


@causal_conv1d_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return fake(arguments[: len(Gradients._fields)])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, (ctx.silu, ctx.reverse, ctx.backend) = inputs[:5], inputs[5:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _differentiate(
    run: Callable[..., Any], ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The backward for autograd, by the operator or by its kernel."""
    tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    grads = run(*tensors, grad_out, grad_final_state, ctx.silu, ctx.reverse, ctx.backend)
    return (*taken(grads, tensors[:4], ctx.needs_input_grad[:4]), None, None, None, None)


causal_conv1d.register_autograd(partial(_differentiate, causal_conv1d_backward), setup_context=_setup_context)
eager_causal_conv1d = differentiable(
    "CausalConv1d", forward, _setup_context, _differentiate, backward, causal_conv1d_backward
)
