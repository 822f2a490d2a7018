"""Multi-head self-attention over all tokens of an image (arXiv:1706.03762 §3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_vit.linear import Linear, derivatives

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LONGEST = 1024  # tokens: from there on a fused kernel is as fast, and keeps no scores
SCORES = 2**21  # at a time: they stay in the cache


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
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
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
        x = attend(q, k, v)  # (b, h, l, k)
        x = x.transpose(1, 2).flatten(2)  # (b, l, d)
        return F.dropout(self.proj(x), self.dropout, self.training)


def attend(q: Float[Tensor, "b h l k"], k: Float[Tensor, "b h l k"], v: Float[Tensor, "b h l k"]) -> Tensor:
    """softmax(q · kᵀ / √k) · v.

    torch's fused kernel for CPUs takes twice as long in bfloat16 as the products it is made of, so these run instead
    where no derivatives are wanted. Their scores are rounded to bfloat16, as all other activations are.

    Args:
        q: Queries, `(b, h, l, k)`.
        k: Keys.
        v: Values.
    Returns:
        `(b, h, l, k)`.
    """
    apart = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= LONGEST
    if apart and not derivatives(q, k, v):
        return _in_products(q, k, v)
    x: Tensor = F.scaled_dot_product_attention(q, k, v)
    return x


def _in_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Some heads at a time, so that the scores of all are never there at once."""
    b, h, l, width = q.shape
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))  # (b·h, l, k)
    none, out, step = q.new_zeros(1, 1, 1), torch.empty_like(q), max(SCORES // max(l, 1) ** 2, 1)
    for some in (slice(start, start + step) for start in range(0, b * h, step)):
        scores = torch.baddbmm(none, q[some], k[some].transpose(1, 2), beta=0, alpha=width**-0.5)  # (n, l, l)
        torch.bmm(scores.softmax(-1), v[some], out=out[some])
    return out.view(b, h, l, width)
