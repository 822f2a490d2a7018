"""`mlp`: LLaVA's projector, then as `add`.

Liu et al., Improved Baselines with Visual Instruction Tuning (LLaVA-1.5), arXiv:2310.03744: Linear, GELU, Linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.errors import ArgumentError
from mmm_fusion.inputs import check_arguments, check_inputs
from mmm_fusion.interface import FusionMethod, FusionOutput
from mmm_fusion.methods.add import add_image

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class MLP(FusionMethod):
    """Image tokens through a two-layer perceptron, pooled to the text's length and added to the text.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens.
        ratio: Hidden width of the projector, over `dim`.
    Source:
        arXiv:2310.03744, for the projector.
    """

    name = "mlp"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float, ratio: float = 1.0) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        hidden = hidden_width(self, dim, ratio)
        self.proj = nn.Sequential(nn.Linear(image_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
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
        """Fuse to `(b, l, dim)`; see `FusionMethod.forward`."""
        text, image = check_inputs(self, text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        image = self.dropout(self.proj(image))  # (b, p, dim)
        return add_image(text, image, text_mask=text_mask, image_mask=image_mask)


def hidden_width(method: FusionMethod, dim: int, ratio: float) -> int:
    """`ratio * dim`, or an error that names the option."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio * dim < float("inf"):
        raise ArgumentError(
            f"fusion method '{method.name}': `ratio` must be a number with ratio * dim at least 1, got {ratio!r}."
        )
    return int(ratio * dim)
