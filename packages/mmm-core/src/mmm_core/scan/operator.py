"""The selective scan as one `torch.library` operator, with its fake kernel and its gradient.

`torch.compile` and `torch.export` see a single node. The third output holds what the backward needs and nobody else.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmm_core.arithmetic import autocast_off
from mmm_core.backends import Modules
from mmm_core.eager import differentiable
from mmm_core.gradients import fake, handed_over, refuse_second, taken
from mmm_core.scan import chunked, native, reference
from mmm_core.scan.problem import Gradients, Problem

if TYPE_CHECKING:
    from collections.abc import Callable


class Backend(Protocol):
    """What a module in this folder must have to be one."""

    def forward(self, p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Output, final state and checkpoints; the checkpoints are empty unless `save`."""

    def backward(self, p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
        """The gradients; the per-position ones in their inputs' dtypes."""

    def checkpoint_shape(self, p: Problem) -> tuple[int, ...]:
        """The shape of the checkpoints where they are saved."""


BACKENDS: Modules[Backend] = Modules("mmm_core.scan", {"native": native, "chunked": chunked, "reference": reference})


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and checkpoints of a call; `save` is false where no gradient will be asked for."""
    p = Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse)
    with autocast_off(u):
        return BACKENDS[backend].forward(p, save)


selective_scan = torch.library.custom_op("mmm_core::selective_scan", forward, mutates_args=())


@selective_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *call, save, backend = arguments
    p = Problem(*call)
    checkpoints = BACKENDS[backend].checkpoint_shape(p) if save else (0,)
    return (
        p.u.new_empty(p.u.shape),
        p.u.new_empty(p.state_shape, dtype=p.dtype),
        p.u.new_empty(checkpoints, dtype=p.dtype),
    )


def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    checkpoints: Tensor,
    grad_out: Tensor,
    grad_final_state: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the floating inputs, each in its input's dtype; empty where the input is absent."""
    p = Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse)
    with autocast_off(u):
        grads = BACKENDS[backend].backward(p, checkpoints, grad_out, grad_final_state)
    return Gradients(*handed_over(grads, p.floating))


selective_scan_backward = torch.library.custom_op("mmm_core::selective_scan_backward", backward, mutates_args=())
selective_scan_backward.register_autograd(refuse_second)


@selective_scan_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return fake(arguments[: len(Gradients._fields)])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, (ctx.delta_softplus, ctx.reverse, ctx.saved, ctx.backend) = inputs[:10], inputs[10:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(
    run: Callable[..., Any], ctx: Any, grad_out: Tensor | None, grad_final_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The backward for autograd, by the operator or by its kernel."""
    if not ctx.saved:
        raise RuntimeError("selective_scan: the call was traced with gradients off. Trace it again with them on.")
    tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    grads = run(*tensors, grad_out, grad_final_state, ctx.delta_softplus, ctx.reverse, ctx.backend)
    return (*taken(grads, tensors[:9], ctx.needs_input_grad[:9]), None, None, None, None, None)


selective_scan.register_autograd(partial(_differentiate, selective_scan_backward), setup_context=_setup_context)
eager_selective_scan = differentiable(
    "SelectiveScan", forward, _setup_context, _differentiate, backward, selective_scan_backward
)
