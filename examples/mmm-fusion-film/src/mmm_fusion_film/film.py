"""`film`: the image scales and shifts each channel of the text.

Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion import FusionMethod, ImageFirst, ImageMemory, check_arguments, check_image, check_text, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Film(ImageFirst):
    """Each channel of the text, scaled and shifted by the image: (1 + gamma) * text + beta.

    Gamma and beta are linear in the mean of the image tokens, and zero at the start: the text passes unchanged.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the mean image token.
    Source:
        arXiv:1709.07871 §2.
    """

    name = "film"
    contract = 1
    tokenwise = True  # each word is joined by itself

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.dropout = nn.Dropout(dropout)
        self.to_gamma_beta = nn.Linear(image_dim, 2 * dim)
        nn.init.zeros_(self.to_gamma_beta.weight)
        nn.init.zeros_(self.to_gamma_beta.bias)

    def read(
        self,
        image: Tensor,
        *,
        image_mask: Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Turn each image into one gamma and one beta; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        real = image.new_ones(image.shape[:2]) if image_mask is None else image_mask.to(image.dtype)  # (b, p)
        count = real.sum(dim=1, keepdim=True)  # (b, 1)
        # Padding is zero already. Divided before it is summed: the sum may be too large for float16.
        mean = (image / count.clamp(min=1)[..., None]).sum(dim=1)  # (b, image_dim)
        gamma_beta = self.to_gamma_beta(self.dropout(mean)) * (count > 0)  # nothing where there is no image
        gamma, beta = gamma_beta[:, None].chunk(2, dim=2)  # each (b, 1, dim)
        return ImageMemory(gamma[:, :0], context=(gamma, beta))

    def join(self, text: Tensor, memory: ImageMemory, *, text_mask: Tensor | None = None) -> Tensor:
        """Scale and shift the text; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        gamma, beta = memory.context
        fused: Tensor = (1 + gamma) * text + beta
        return fused


@hookimpl
def mmm_fusion_methods() -> list[type[FusionMethod]]:
    """Offer `film`."""
    return [Film]
