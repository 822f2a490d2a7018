"""Calls that go to their kernel directly: torch's dispatcher takes longer than a single step does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

_is_batched = torch._C._functorch.is_legacy_batchedtensor  # as of `torch.autograd.grad(..., is_grads_batched=True)`
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def eager(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nobody but the kernel, and autograd, has a part in a call on these tensors.

    The operator is called where somebody has: torch.compile, torch.export or a trace, which look for a node; a mode, as
    of fake tensors or of a counter of operations; a transform of torch.func; tangents of forward-mode gradients; a
    profiler; a subclass of Tensor; a tensor whose numbers are not what stands in its memory, or which
    has no memory, as on the device `meta`.
    """
    if torch.compiler.is_compiling() or _observed():
        return False
    for x in tensors:
        if x is None:
            continue
        if type(x) not in _PLAIN or x.is_meta or x.is_neg() or x._is_zerotensor() or _is_batched(x):
            return False
    return True


def refuse_tangents(where: str, tensors: Iterable[Tensor | None]) -> None:
    """Raise for an operator that is not called eagerly where torch would drop what it cannot carry on.

    Raises:
        RuntimeError: A tensor has a tangent of forward-mode gradients.
    """
    if forward_ad._current_level < 0:
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            f"{where}: tensors without tangents of forward-mode gradients were expected, as of torch.func.jvp, got one "
            "with. There is a gradient by backward alone: use torch.autograd.grad."
        )


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call on these tensors is to be recorded."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def writable(state: Tensor) -> bool:
    """Whether a kernel may write a state where it stands, and if so, tell autograd that it was written.

    `copy_` is for the others, and says why not. Whether a state shares memory with other tensors of a call is not asked
    for: that would take as long as the call.

    Raises:
        RuntimeError: Numbers of the state share their memory, as an expanded one's do.
    """
    if not state.is_contiguous() and torch._debug_has_internal_overlap(state) and _overlaps(state):
        raise RuntimeError(
            "a step: each number of the state must have a place of its own in memory, got "
            f"{tuple(state.shape)} with strides {state.stride()}. Pass state.contiguous()."
        )
    if state.is_inference() and not torch.is_inference_mode_enabled():
        return False
    torch.autograd.graph.increment_version(state)
    return True


def _overlaps(x: Tensor) -> bool:
    """Whether two numbers of a tensor stand in one place."""
    reach, nested = 0, True
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        nested &= stride > reach or size == 1
        reach += (size - 1) * stride
    if nested:
        return False
    places = torch.arange(reach + 1).as_strided(x.shape, x.stride())
    return len(places.unique()) < x.numel()


def differentiable(
    name: str,
    forward: Callable[..., Any],
    setup_context: Callable[..., None],
    differentiate: Callable[..., Any],
    backward: Callable[..., Any],
    operator: Callable[..., Any],
) -> Callable[..., Any]:
    """An operator's forward for eager calls that need a gradient: autograd learns of it without the dispatcher.

    Args:
        name: What `grad_fn` shows.
        forward: The kernel.
        setup_context: As of `torch.library.register_autograd`.
        differentiate: As the backward of that, behind the function that computes the gradients.
        backward: That function: the kernel.
        operator: That function where the gradients are not `eager`, or are recorded, which the operator refuses.
    Returns:
        `forward` with a gradient.
    """

    def forward_in(ctx: Any, *arguments: Any) -> Any:  # a setup_context of its own would cost as much as the call
        output = forward(*arguments)
        setup_context(ctx, arguments, output)
        return output

    def backward_in(ctx: Any, *grads: Tensor | None) -> Any:
        direct = eager(grads) and not torch.is_grad_enabled()
        return differentiate(backward if direct else operator, ctx, *grads)

    members = {"forward": staticmethod(forward_in), "backward": staticmethod(backward_in)}
    function: Any = type(name, (torch.autograd.Function,), members)
    run: Callable[..., Any] = function.apply
    return run


def _observed() -> bool:
    """Whether a mode, a transform, a trace, a profiler or forward-mode autograd sees each call of an operator."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )
