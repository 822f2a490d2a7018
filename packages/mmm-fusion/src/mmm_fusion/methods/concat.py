"""`concat`: the projected image tokens stand before the text, and the backbone does the rest.

Liu et al., Visual Instruction Tuning (LLaVA), arXiv:2304.08485 §4.1: one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image
from mmm_fusion.interface import ImageMemory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Concat(ImageFirst):
    """Image tokens, projected, then the text.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens.
    Source:
        arXiv:2304.08485 §4.1.
    """

    name = "concat"
    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Project the image tokens, which then stand before every text; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        return ImageMemory(self.dropout(self.proj(image)), image_mask)  # (b, p, dim)
