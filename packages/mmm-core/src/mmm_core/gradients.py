"""How the operators hand gradients over: `torch.library` returns no None, so an absent input's is an empty tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


def handed_over(grads: Iterable[Tensor], inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The gradients in their inputs' dtypes, contiguous; the first input is never absent."""
    first = inputs[0]
    assert first is not None
    return tuple(
        first.new_empty(0) if x is None else grad.to(x.dtype).contiguous()
        for grad, x in zip(grads, inputs, strict=True)
    )


def fake(inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """What `handed_over` returns for these inputs, for a fake kernel."""
    first = inputs[0]
    assert first is not None
    return tuple(first.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)


def taken(
    grads: Iterable[Tensor], inputs: Iterable[Tensor | None], needed: Iterable[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None where the input is absent or needs none."""
    together = zip(grads, inputs, needed, strict=True)
    return tuple(grad if x is not None and needs else None for grad, x, needs in together)


def refuse_second(ctx: Any, *grads: Tensor | None) -> NoReturn:
    """The backward of operators that compute gradients: there is none.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "mmm_core: a gradient alone was expected, got a loss that depends on one, as by create_graph=True. "
        "There is no second derivative: leave such a penalty out."
    )
