"""`add`: the projected image tokens are added to the text.

Token by token where the two are of one length; else the image tokens, in raster order, are first averaged down
(or repeated up) to the length of the text, with the windows of adaptive average pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Add(ImageFirst):
    """Image tokens, projected and pooled to the text's length, added to the text.

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

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Add to each text token its share of the image tokens; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        image, image_mask = memory.context
        return text + pooled_to(text, image, text_mask=text_mask, image_mask=image_mask)


def pooled_to(
    text: Float[Tensor, "b l dim"],
    image: Float[Tensor, "b p dim"],
    *,
    text_mask: Bool[Tensor, "b l"] | None,
    image_mask: Bool[Tensor, "b p"] | None,
) -> Float[Tensor, "b l dim"]:
    """For each text token the mean of its window of the image tokens.

    Args:
        text: Text tokens.
        image: Image tokens, already `dim` wide.
        text_mask: `(b, l)`, or None where all are real.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        `(b, l, dim)`; zeros in a row without real image tokens.
    """
    everywhere = torch.ones(1, 1, dtype=torch.bool, device=text.device)
    window = pooling_windows(
        everywhere.expand(1, text.shape[1]) if text_mask is None else text_mask,
        everywhere.expand(1, image.shape[1]) if image_mask is None else image_mask,
    )
    size = window.sum(dim=2, keepdim=True).clamp(min=1)  # (b, l, 1)
    return window.to(image.dtype) @ image / size.to(image.dtype)


def pooling_windows(text_mask: Bool[Tensor, "#b l"], image_mask: Bool[Tensor, "#b p"]) -> Bool[Tensor, "#b l p"]:
    """Which image tokens each text token takes the average of.

    Real tokens are counted, padding is passed over: the i-th of l real text tokens takes the real image tokens
    from floor(i p / l) to below ceil((i + 1) p / l), as `torch.nn.functional.adaptive_avg_pool1d` does.
    """
    l = text_mask.sum(dim=1)[:, None, None].clamp(min=1)
    p = image_mask.sum(dim=1)[:, None, None]
    i = text_mask.cumsum(dim=1)[:, :, None] - 1  # (b, l, 1), ranks of the real tokens
    j = image_mask.cumsum(dim=1)[:, None, :] - 1  # (b, 1, p)
    start, stop = i * p // l, ((i + 1) * p + l - 1) // l
    real = text_mask[:, :, None] & image_mask[:, None, :]
    return real & (start <= j) & (j < stop)
