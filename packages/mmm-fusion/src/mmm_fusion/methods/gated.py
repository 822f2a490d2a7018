"""`gated`: a gate weighs each word against the image.

Arevalo et al., Gated Multimodal Units for Information Fusion, arXiv:1702.01992 §3: the bimodal unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.pooling import count_real, mean_token

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Gated(ImageFirst):
    """Each word and the mean image token, mixed channel by channel by a gate that sees both.

    Words are RMS-normed first: embeddings are a small fraction of the image tokens in size, and the image would hide
    them. A row without an image keeps its gates shut.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected mean image token.
    Source:
        arXiv:1702.01992 §3.
    """

    name = "gated"
    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.image_proj = nn.Linear(image_dim, dim, bias=False)
        self.text_proj = nn.Linear(dim, dim, bias=False)
        # One matrix over [image; word], in two parts, as the image's needs no word.
        self.image_gate = nn.Linear(image_dim, dim, bias=False)
        self.text_gate = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Project the mean image token, and do its part of the gate; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        mean = mean_token(image, image_mask)  # (b, image_dim)
        seen = count_real(image, image_mask) > 0  # (b, 1)
        hidden = self.dropout(self.image_proj(mean).tanh())  # (b, dim)
        return ImageMemory(image.new_zeros(image.shape[0], 0, self.dim), context=(hidden, self.image_gate(mean), seen))

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Mix the image into each word; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        hidden, gate, seen = (each[:, None] for each in memory.context)  # (b, 1, dim), and (b, 1, 1)
        word = self.norm(text)
        z = (gate + self.text_gate(word)).sigmoid() * seen  # (b, l, dim)
        mixed: Tensor = z * hidden + (1 - z) * self.text_proj(word).tanh()
        return mixed.to(text.dtype)  # autocast would leave it in half precision
