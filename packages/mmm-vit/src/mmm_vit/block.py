"""One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)) (arXiv:2010.11929 §3.1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_vit.attention import Attention
from mmm_vit.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from mmm_vit.config import Activation, ViTConfig


class Block(nn.Module):
    """Attention and a feed-forward part, each a branch of the residual stream.

    Args:
        config: Sizes and options.
        drop_path: Rate at which a branch is dropped in training, row by row.
    """

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(dim, config.heads, qkv_bias=config.qkv_bias, dropout=config.dropout)
        self.ls1 = _layer_scale(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.activation, config.dropout)
        self.ls2 = _layer_scale(config)
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Apply the block.

        Args:
            x: `(b, l, d)`.
        Returns:
            `(b, l, d)`.
        """
        x = x + drop_path(self.ls1(self.attn(self.norm1(x))), self.drop_path, self.training)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), self.drop_path, self.training)


def quick_gelu(x: Float[Tensor, "b l hidden"]) -> Float[Tensor, "b l hidden"]:
    """GELU as approximated by a sigmoid, x · σ(1.702 x) (arXiv:1606.08415 §2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class Mlp(nn.Module):
    """Linear, activation, linear, with dropout after both.

    Args:
        dim: Width of a token.
        hidden: Width in between.
        activation: As in `ViTConfig`.
        dropout: Rate.
    """

    def __init__(self, dim: int, hidden: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Apply to each token by itself."""
        x = F.dropout(ACTIVATIONS[self.activation](self.fc1(x)), self.dropout, self.training)  # (b, l, hidden)
        return F.dropout(self.fc2(x), self.dropout, self.training)  # (b, l, d)


class LayerScale(nn.Module):
    """A learned factor for each channel (arXiv:2103.17239).

    Args:
        dim: Width of a token.
        start: Value that each factor starts from.
    """

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(start)))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Scale."""
        return x * self.gamma


def drop_path(x: Float[Tensor, "b l d"], rate: float, training: bool) -> Float[Tensor, "b l d"]:
    """Stochastic depth: in training, drops a row's whole branch and scales up those it keeps.

    Args:
        x: A branch's output, `(b, l, d)`.
        rate: Probability to drop.
        training: Whether to drop at all.
    Returns:
        `(b, l, d)`.
    Source:
        arXiv:1603.09382, with the scale of inverted dropout.
    """
    if rate == 0 or not training:
        return x
    return x * F.dropout(x.new_ones(x.shape[0], 1, 1), rate)


def _layer_scale(config: ViTConfig) -> nn.Module:
    return nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale)
