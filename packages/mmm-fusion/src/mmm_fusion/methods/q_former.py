"""`q_former`: learned queries talk to each other, ask the image, and stand before the text.

Li et al., BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models,
arXiv:2301.12597 §3.1 and §3.3. Unlike there, every layer asks the image, not every other one; norms are RMSNorm and
come before each branch, as in the backbone, with one more at the end; attention has no biases; and nothing is
pretrained: the queries see no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_fusion.attention import Attention, feed_forward
from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_counts, check_image
from mmm_fusion.interface import ImageMemory
from mmm_fusion.methods.mlp import hidden_width
from mmm_fusion.methods.perceiver import learned_prefix

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class QFormer(ImageFirst):
    """Learned queries through a transformer that attends to the image, then a linear layer, then the text.

    Args:
        dim: Width of the text, and of the queries.
        image_dim: Width of the image tokens.
        heads: Attention heads.
        dropout: On what attention and feed-forward add to the queries.
        queries: Number of queries: of tokens before the text, whatever the number of image tokens.
        depth: Number of layers.
        ratio: Hidden width of the feed-forward layers, over `dim`.
    Source:
        arXiv:2301.12597 §3.1; §3.3 for the linear layer.
    """

    name = "q_former"
    tokenwise = True

    def __init__(
        self,
        dim: int,
        image_dim: int,
        *,
        heads: int,
        dropout: float,
        queries: int = 16,
        depth: int = 2,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        check_counts(self, queries=queries, depth=depth)
        self.dim, self.image_dim = dim, image_dim
        hidden = hidden_width(self, dim, ratio)
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.layers = nn.ModuleList(QueryLayer(dim, image_dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Let the queries ask the image; they then stand before every text. See `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        queries = self.queries.expand(image.shape[0], -1, -1)  # (b, n, dim)
        for layer in self.layers:
            queries = layer(queries, image, image_mask)
        return learned_prefix(self.proj(self.norm(queries)), image, image_mask)


class QueryLayer(nn.Module):
    """Self-attention of the queries, attention to the image, feed-forward: each pre-norm and residual."""

    def __init__(self, dim: int, image_dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.self_attention = Attention(dim, dim, heads)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.cross_attention = Attention(dim, image_dim, heads)
        self.ffn = feed_forward(dim, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "b n dim"],
        image: Float[Tensor, "b p image_dim"],
        image_mask: Bool[Tensor, "b p"] | None,
    ) -> Float[Tensor, "b n dim"]:
        """Change the queries; a row without real image tokens gets nothing from the image."""
        x = self.norm1(queries)
        queries = queries + self.dropout(self.self_attention(x, *self.self_attention.keys_values(x)))
        k, v = self.cross_attention.keys_values(image)
        queries = queries + self.dropout(self.cross_attention(self.norm2(queries), k, v, image_mask))
        return queries + self.ffn(queries)  # type: ignore[no-any-return]
