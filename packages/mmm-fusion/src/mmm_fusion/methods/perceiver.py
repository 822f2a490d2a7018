"""`perceiver`: a fixed number of learned latents gather what the image tokens hold, and stand before the text.

Alayrac et al., Flamingo: a Visual Language Model for Few-Shot Learning, arXiv:2204.14198 §2.1 and appendix A.1.1: the
Perceiver Resampler, for one image. Unlike there, the image is projected to the width of the text first, norms are
RMSNorm, and the feed-forward layers have GELU for squared ReLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_fusion.attention import Attention, feed_forward
from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_counts, check_image
from mmm_fusion.interface import ImageMemory
from mmm_fusion.methods.mlp import hidden_width

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Perceiver(ImageFirst):
    """Learned latents that attend to the image and to themselves, then the text.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads.
        dropout: On what attention and feed-forward add to the latents.
        latents: Number of latents: of tokens before the text, whatever the number of image tokens.
        depth: Number of layers.
        ratio: Hidden width of the feed-forward layers, over `dim`.
    Source:
        arXiv:2204.14198 §2.1, appendix A.1.1.
    """

    name = "perceiver"
    tokenwise = True

    def __init__(
        self,
        dim: int,
        image_dim: int,
        *,
        heads: int,
        dropout: float,
        latents: int = 16,
        depth: int = 2,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        check_counts(self, latents=latents, depth=depth)
        self.dim, self.image_dim = dim, image_dim
        hidden = hidden_width(self, dim, ratio)
        self.proj = nn.Linear(image_dim, dim)
        self.latents = nn.Parameter(0.02 * torch.randn(latents, dim))
        self.layers = nn.ModuleList(ResamplerLayer(dim, heads, hidden, dropout) for _ in range(depth))

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Gather the image in the latents, which then stand before every text; see `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        latents = self.latents.expand(image.shape[0], -1, -1)  # (b, n, dim)
        values = self.proj(image).to(latents.dtype)  # autocast would leave them in half precision
        mask = None if image_mask is None else F.pad(image_mask, (0, latents.shape[1]), value=True)  # (b, p + n)
        for layer in self.layers:
            latents = layer(latents, values, mask)
        return learned_prefix(latents, image, image_mask)


class ResamplerLayer(nn.Module):
    """Attention from the latents to [image; latents], then feed-forward, both residual."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_image = nn.RMSNorm(dim, eps=1e-6)
        self.norm_latents = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, dim, heads)
        self.ffn = feed_forward(dim, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        latents: Float[Tensor, "b n dim"],
        image: Float[Tensor, "b p dim"],
        mask: Bool[Tensor, "b m"] | None,
    ) -> Float[Tensor, "b n dim"]:
        """Change the latents; `mask` is that of [image; latents]."""
        queries = self.norm_latents(latents)
        source = torch.cat([self.norm_image(image), queries], dim=1)  # (b, p + n, dim)
        latents = latents + self.dropout(self.attention(queries, *self.attention.keys_values(source), mask))
        return latents + self.ffn(latents)  # type: ignore[no-any-return]


def learned_prefix(
    tokens: Float[Tensor, "b n dim"], image: Float[Tensor, "b p image_dim"], image_mask: Bool[Tensor, "b p"] | None
) -> ImageMemory:
    """The tokens that were made of the image as what stands before the text.

    Args:
        tokens: Learned tokens that have seen the image.
        image: The image tokens.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        A memory without them where there is no image token, and with a mask on them in rows where none is real.
    """
    n = tokens.shape[1] if image.shape[1] else 0
    mask = None if image_mask is None else image_mask.any(dim=1, keepdim=True).expand(-1, n)
    return ImageMemory(tokens[:, :n].to(image.dtype), mask)
