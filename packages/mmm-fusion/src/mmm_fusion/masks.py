"""What masks say: which tokens are real in two sequences put together, and the how-many-th each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def joint_mask(
    text: Float[Tensor, "b l dim"],
    p: int,
    *,
    text_mask: Bool[Tensor, "b l"] | None,
    image_mask: Bool[Tensor, "b p"] | None,
) -> Bool[Tensor, "b m"] | None:
    """The mask of [image; text].

    Args:
        text: Text tokens.
        p: Number of image tokens.
        text_mask: `(b, l)`, or None where all are real.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        `(b, p + l)`, or None where all are real.
    """
    if text_mask is None and image_mask is None:
        return None
    real = torch.ones(1, 1, dtype=torch.bool, device=text.device)
    image_mask = real.expand(text.shape[0], p) if image_mask is None else image_mask
    text_mask = real.expand(*text.shape[:2]) if text_mask is None else text_mask
    return torch.cat([image_mask, text_mask], dim=1)


def count_on(
    text: Float[Tensor, "b l dim"], text_mask: Bool[Tensor, "b l"] | None, before: Int[Tensor, " b"] | None
) -> tuple[Int[Tensor, "#b l"], Int[Tensor, " b"]]:
    """Number the real text tokens, 1, 2, ...: padding is passed over.

    Args:
        text: Text tokens.
        text_mask: `(b, l)`, or None where all are real.
        before: How many came before, in each row; None: none.
    Returns:
        The number of each token, `(b, l)` or, where all rows have the same, `(1, l)`; and how many there are so far,
        `(b,)`. Padding has the number of the real token before it.
    """
    b, l, _ = text.shape
    if text_mask is None:
        number, count = torch.arange(1, l + 1, device=text.device)[None], text.new_full((b,), l, dtype=torch.long)
    else:
        number, count = text_mask.cumsum(dim=1), text_mask.sum(dim=1)
    return (number, count) if before is None else (before[:, None] + number, before + count)
