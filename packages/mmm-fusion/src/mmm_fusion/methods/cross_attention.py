"""`cross_attention`: every text token looks at the image, through gates that are closed at the start.

Alayrac et al., Flamingo: a Visual Language Model for Few-Shot Learning, arXiv:2204.14198 §2.2: the layer
GATED XATTN-DENSE. Unlike there, norms are RMSNorm, and the feed-forward layer has GELU for squared ReLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_fusion.attention import Attention, feed_forward
from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.methods.mlp import hidden_width

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class CrossAttention(ImageFirst):
    """Attention from the text to the image, then a feed-forward layer, each times the tanh of a gate that starts at 0.

    So the text passes unchanged at first. Image tokens do not stay in the sequence.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads.
        dropout: On what attention and feed-forward add to the text.
        ratio: Hidden width of the feed-forward layer, over `dim`.
    Source:
        arXiv:2204.14198 §2.2, figure 4.
    """

    name = "cross_attention"
    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float, ratio: float = 4.0) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, image_dim, heads)
        self.attention_gate = nn.Parameter(torch.zeros(()))
        self.ffn = feed_forward(dim, hidden_width(self, dim, ratio), dropout)
        self.ffn_gate = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Make the image's keys and values; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        k, v = self.attention.keys_values(image)  # (b, h, p, d)
        return ImageMemory(image.new_zeros(image.shape[0], 0, self.dim), context=(k, v, image_mask))

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Let each text token attend to the image; see `FusionMethod.join`."""
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        attended = self.dropout(self.attention(self.norm(text), *memory.context))
        text = text + self.attention_gate.tanh() * attended
        return text + self.ffn_gate.tanh() * self.ffn(text)  # type: ignore[no-any-return]
