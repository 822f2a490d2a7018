"""Attention of one sequence to another, and the feed-forward layer after it: what methods that attend are made of.

Vaswani et al., Attention Is All You Need, arXiv:1706.03762 §3.2 and §3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Attention(nn.Module):
    """Queries of one sequence, keys and values of another or of the same one; no order in either.

    There are no biases. One of the keys cancels in the softmax; one of the output would be added where nothing is seen.

    Args:
        dim: Width of the queries and of the result, divisible by `heads`.
        source_dim: Width of what is attended to.
        heads: Attention heads.
    """

    def __init__(self, dim: int, source_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(source_dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for layer in (self.to_q, self.to_kv, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        # Scores of scale 3: each query chooses from the start. With torch's small ones all learned queries begin as the
        # same mean of the image, and take several times as long to learn.
        with torch.no_grad():
            self.to_q.weight *= 3

    def keys_values(
        self, source: Float[Tensor, "b m source_dim"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """What `forward` needs of `source`, however many sequences attend to it."""
        k, v = self.to_kv(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self,
        x: Float[Tensor, "b l dim"],
        k: Float[Tensor, "b h m d"],
        v: Float[Tensor, "b h m d"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b l dim"]:
        """Attend.

        Args:
            x: What the queries are made of, `(b, l, dim)`.
            k: Keys, `(b, h, m, d)`; m may be 0.
            v: Values, `(b, h, m, d)`.
            mask: True for a key that may be seen, `(b, m)`; None: all may.
        Returns:
            `(b, l, dim)`; zeros in a row where no key may be seen.
        """
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (b, h, l, d)
        if mask is None:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            # Not every kernel makes zero of a softmax over nothing: such a row sees all, and is set to zero after.
            blind = ~mask.any(dim=1)[:, None, None, None]  # (b, 1, 1, 1)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] | blind)
            attended = attended.masked_fill(blind, 0)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def feed_forward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """A pre-norm residual branch: norm, Linear, GELU, Linear, dropout."""
    return nn.Sequential(
        nn.RMSNorm(dim, eps=1e-6), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Dropout(dropout)
    )
