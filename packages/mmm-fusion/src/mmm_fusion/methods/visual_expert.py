"""`visual_expert`: one causal attention over image and text, each with weights of its own.

Wang et al., CogVLM: Visual Expert for Pretrained Language Models, arXiv:2311.03079 §2.1. As there, the whole sequence
is causal, and all image tokens share one rotary position: the encoder has already told them where they stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_fusion.inputs import check_arguments, check_inputs, prepend
from mmm_fusion.interface import FusionMethod, FusionOutput
from mmm_fusion.methods.mlp import hidden_width

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class VisualExpert(FusionMethod):
    """A pre-norm transformer layer over [image; text], with one set of weights for each of the two.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads.
        dropout: On what attention and feed-forward add to the residual.
        ratio: Hidden width of the feed-forward layers, over `dim`.
    Source:
        arXiv:2311.03079 §2.1.
    """

    name = "visual_expert"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float, ratio: float = 4.0) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim, self.heads = dim, image_dim, heads
        hidden = hidden_width(self, dim, ratio)
        self.proj = nn.Linear(image_dim, dim)
        self.image_expert = Expert(dim, hidden, dropout)
        self.text_expert = Expert(dim, hidden, dropout)

    def forward(
        self,
        text: Float[Tensor, "b l dim"],
        image: Float[Tensor, "b p image_dim"] | None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        """Fuse to `(b, p + l, dim)`; see `FusionMethod.forward`."""
        text, image = check_inputs(self, text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        image = self.proj(image).to(text.dtype)  # (b, p, dim); autocast would leave the residual in half precision
        p = image.shape[1]
        joint = prepend(  # (b, p + l, 3 * dim)
            self.image_expert.qkv(image), self.text_expert.qkv(text), text_mask=text_mask, image_mask=image_mask
        )
        attended = causal_attention(joint.tokens, self.heads, positions(text, p, text_mask), joint.mask)
        image = self.image_expert(image, attended[:, :p])
        text = self.text_expert(text, attended[:, p:])
        return joint._replace(tokens=torch.cat([image, text], dim=1))  # (b, p + l, dim)


class Expert(nn.Module):
    """The weights of one modality: all of a transformer layer but the attention, which is joint."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def qkv(self, x: Float[Tensor, "b l dim"]) -> Float[Tensor, "b l 3*dim"]:
        """Queries, keys and values side by side."""
        return self.to_qkv(self.norm1(x))  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b l dim"], attended: Float[Tensor, "b l dim"]) -> Float[Tensor, "b l dim"]:
        """What follows the attention: two residual branches."""
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.ffn(self.norm2(x)))  # type: ignore[no-any-return]


def causal_attention(
    qkv: Float[Tensor, "b m e"],
    heads: int,
    position: Int[Tensor, "#b m"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b m dim"]:
    """Multi-head attention of each position to itself and the real ones before it; e is 3 * dim."""
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, heads, m, dim / heads)
    q, k = rotate(q, position), rotate(k, position)
    if mask is None:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        m = mask.shape[1]
        earlier = torch.ones(m, m, dtype=torch.bool, device=mask.device).tril()
        # Padding sees itself: not every kernel makes zero of a softmax over nothing.
        itself = torch.eye(m, dtype=torch.bool, device=mask.device)
        seen = (earlier & mask[:, None, :]) | itself  # (b, m, m)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
    return attended.transpose(1, 2).flatten(2)


def positions(text: Float[Tensor, "b l dim"], p: int, text_mask: Bool[Tensor, "b l"] | None) -> Int[Tensor, "#b {p}+l"]:
    """0 for every image token, then 1, 2, ... for the real text tokens."""
    real = torch.ones_like(text[:1, :, 0], dtype=torch.bool) if text_mask is None else text_mask
    return F.pad(real.cumsum(dim=1), (p, 0))


def rotate(
    x: Float[Tensor, "b h m d"], position: Int[Tensor, "#b m"], base: float = 10_000.0
) -> Float[Tensor, "b h m d"]:
    """Rotary position embedding (Su et al., arXiv:2104.09864). Of an odd `d` the last channel stays as it is."""
    wide = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half, device=x.device, dtype=wide) / max(half, 1))
    angle = position[:, None, :, None].to(wide) * frequency  # (b, 1, m, d / 2)
    cos, sin = angle.cos(), angle.sin()
    first, second, rest = x.to(wide).split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)
    return turned.to(x.dtype)
