"""`concat`: the projected image tokens stand before the text, and the backbone does the rest.

Liu et al., Visual Instruction Tuning (LLaVA), arXiv:2304.08485 §4.1: one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.inputs import check_arguments, check_inputs, prepend
from mmm_fusion.interface import FusionMethod, FusionOutput

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Concat(FusionMethod):
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

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        text: Float[Tensor, "b l dim"],
        image: Float[Tensor, "b p image_dim"] | None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        """Fuse to `(b, p + l, dim)`; see `FusionMethod.forward`."""
        text, image = check_inputs(self, text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        image = self.dropout(self.proj(image))  # (b, p, dim)
        return prepend(image, text, text_mask=text_mask, image_mask=image_mask)
