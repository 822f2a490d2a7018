"""Which calls may go to their kernel directly, past torch's dispatcher, which takes longer than a single step does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def eager(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nobody but the kernel has a part in a call that needs no gradient.

    The operator is called where somebody has: torch.compile, torch.export or a trace, which look for a node; a mode, as
    of fake tensors or of a counter of operations; a transform of torch.func; a profiler; a subclass of Tensor; a tensor
    whose numbers are not what stands in its memory.
    """
    if torch.compiler.is_compiling() or _observed():
        return False
    for x in tensors:  # noqa: SIM110  (a generator takes twice as long)
        if x is not None and (type(x) not in _PLAIN or x.is_neg()):
            return False
    return True


def writable(state: Tensor) -> bool:
    """Whether a kernel may write a state where it stands, and if so, tell autograd that it was written.

    `copy_` is for the others: it refuses a state whose numbers share their memory, as an expanded one's do.
    """
    if 0 in state.stride() or (state.is_inference() and not torch.is_inference_mode_enabled()):
        return False
    torch.autograd.graph.increment_version(state)
    return True


def _observed() -> bool:
    """Whether a mode, a transform, a trace or a profiler sees each call of an operator."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )
