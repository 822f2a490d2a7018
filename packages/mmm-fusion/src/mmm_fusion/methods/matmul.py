"""`matmul`: each word takes the image tokens by their similarity to it, without a softmax.

Katharopoulos et al., Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv:2006.16236
§3.2, with the identity for feature map: summed over the image first, one matrix is all that is left of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.pooling import count_real

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Matmul(ImageFirst):
    """The mean of the projected image tokens, each times its similarity to the word, added to the word.

    Keys and values are two projections of the image, and the only parameters. What is added grows with the word, so
    neither of the two drowns the other. Without an image the word stays exactly as it is.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the values.
    Source:
        arXiv:2006.16236 §3.2, without normaliser and feature map.
    """

    name = "matmul"
    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.key = nn.Linear(image_dim, dim, bias=False)
        self.value = nn.Linear(image_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Sum keys times values over the image; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        keys, values = self.key(image), self.dropout(self.value(image))  # (b, p, dim); zero at padding
        keys = keys * self.dim**-0.5 / count_real(image, image_mask).clamp(min=1)[..., None]
        return ImageMemory(values[:, :0], context=(keys.mT @ values,))  # (b, dim, dim)

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Add to each word what it finds in the image; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        found: Tensor = text @ memory.context[0]
        return text + found
