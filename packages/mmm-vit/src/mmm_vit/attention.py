"""Multi-head self-attention over all tokens of an image (arXiv:1706.03762 §3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Attention(nn.Module):
    """Self-attention, every token to every token.

    Args:
        dim: Width of a token, divisible by `heads`.
        heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Rate on the output. The attention weights are not dropped: fused kernels run in training too.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Attend.

        Args:
            x: `(b, l, d)`.
        Returns:
            `(b, l, d)`.
        """
        head_dim = x.shape[-1] // self.heads
        qkv = self.qkv(x).unflatten(2, (3, self.heads, head_dim))  # (b, l, 3, h, k)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, h, l, k)
        x = F.scaled_dot_product_attention(q, k, v)  # (b, h, l, k)
        x = x.transpose(1, 2).flatten(2)  # (b, l, d)
        return F.dropout(self.proj(x), self.dropout, self.training)
