"""How the operators hand gradients over: `torch.library` returns no None, so an absent input's is an empty tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
