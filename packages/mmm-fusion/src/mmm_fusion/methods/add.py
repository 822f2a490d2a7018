"""`add`: the projected image tokens are added to the text, coarse to fine.

The first text token takes the mean of all image tokens, the next two those of the halves, the next four those of the
quarters, and so on down to single tokens; then again from the start. So what a text token takes depends on its own
place and not on the length of the text: an answer must not change when a word is appended to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.masks import count_on

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

LEVELS = 32
"""Enough for 2**32 image tokens."""


class Add(ImageFirst):
    """Image tokens, projected, and added to the text in shares that grow finer from token to token.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens.
    """

    name = "add"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.proj: nn.Module = nn.Linear(image_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Project the image tokens; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        image = self.dropout(self.proj(image))  # (b, p, dim)
        return ImageMemory(image[:, :0], context=(image, image_mask))

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """Add to each text token its share of the image. Of the text its length is kept; see `FusionMethod.extend`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        (before,) = memory.past or (None,)
        number, so_far = count_on(text, text_mask, before)
        return text + shares(number, *memory.context), memory._replace(past=(so_far,))


def shares(
    number: Int[Tensor, "#b l"], image: Float[Tensor, "b p dim"], image_mask: Bool[Tensor, "b p"] | None
) -> Float[Tensor, "b l dim"]:
    """For each text token the mean of its share of the image tokens.

    Args:
        number: The how-many-th of its text each token is, from 1 on; padding may have any.
        image: Image tokens, already `dim` wide.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        `(b, l, dim)`; zeros in a row without real image tokens.
    """
    if image_mask is None:
        image_mask = torch.ones(1, image.shape[1], dtype=torch.bool, device=image.device)
    share = shares_of(number, image_mask)
    size = share.sum(dim=2, keepdim=True).clamp(min=1)  # (b, l, 1)
    # Divided before it is summed: the sum may be too large for float16.
    weight = share.to(torch.promote_types(image.dtype, torch.float32)) / size
    return weight.to(image.dtype) @ image


def shares_of(number: Int[Tensor, "#b l"], image_mask: Bool[Tensor, "#b p"]) -> Bool[Tensor, "#b l p"]:
    """Which image tokens each text token takes the mean of.

    The p real image tokens are cut in 1, 2, 4, ... windows, level by level, and on the last level in p. The windows of
    a level are those of `torch.nn.functional.adaptive_avg_pool1d`: of w the i-th is from floor(i p / w) to below
    ceil((i + 1) p / w).
    """
    p = image_mask.sum(dim=1)[:, None, None]  # (b, 1, 1)
    levels = 2 ** torch.arange(LEVELS, device=number.device)  # the windows of each level, were there no last one
    period = (levels * (levels < p)).sum(dim=2, keepdim=True) + p
    i = (number[:, :, None] - 1) % period.clamp(min=1)  # (b, l, 1), the window among those of all levels
    first = (levels * (2 * levels <= i + 1)).sum(dim=2, keepdim=True)  # the first of its level
    i, w = i - first, torch.minimum(first + 1, p.clamp(min=1))
    start, stop = i * p // w, ((i + 1) * p + w - 1) // w
    j = image_mask.cumsum(dim=1)[:, None, :] - 1  # (b, 1, p), ranks of the real image tokens
    return image_mask[:, None, :] & (start <= j) & (j < stop)
