"""`low_rank`: every product of a channel of the word and a channel of the image, through a tensor of low rank.

Liu et al., Efficient Low-rank Multimodal Fusion with Modality-Specific Factors (LMF), arXiv:1806.00064 §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_counts, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.pooling import mean_token

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class LowRank(ImageFirst):
    """Sums of products of a linear map of [word; 1] and one of [mean image token; 1].

    A word is RMS-normed first, as its embedding is small, and the image's appended 1 has factors of 1 at the start: the
    fused word begins as a linear map of the word that the image bends. Without an image that map is what is left.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected mean image token.
        rank: Number of products in the sum.
    Source:
        arXiv:1806.00064 §3.
    """

    name = "low_rank"
    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float, rank: int = 4) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        check_counts(self, rank=rank)
        self.dim, self.image_dim, self.rank = dim, image_dim, rank
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.text_factors = nn.Linear(dim, rank * dim)  # the factors of the appended 1 are its bias
        self.image_factors = nn.Linear(image_dim, rank * dim, bias=False)
        self.image_one = nn.Parameter(torch.ones(rank * dim))  # apart, out of the reach of dropout
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Apply the image's factors to the mean image token; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        factors = self.dropout(self.image_factors(mean_token(image, image_mask))) + self.image_one
        context = factors.unflatten(1, (self.rank, self.dim))  # (b, rank, dim)
        return ImageMemory(image.new_zeros(image.shape[0], 0, self.dim), context=(context,))

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Multiply the words' factors by the image's, and sum over ranks; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        (image_factors,) = memory.context
        text_factors = self.text_factors(self.norm(text)).unflatten(2, (self.rank, self.dim))  # (b, l, rank, dim)
        fused: Tensor = (text_factors * image_factors[:, None]).sum(dim=2)
        return fused.to(text.dtype)
