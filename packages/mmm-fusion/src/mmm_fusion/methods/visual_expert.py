"""`visual_expert`: one causal attention over image and text, each with weights of its own.

Wang et al., CogVLM: Visual Expert for Pretrained Language Models, arXiv:2311.03079 §2.1. As there, the whole sequence
is causal, and all image tokens share one rotary position: the encoder has already told them where they stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image, check_text
from mmm_fusion.interface import ImageMemory
from mmm_fusion.masks import count_on, joint_mask
from mmm_fusion.methods.mlp import hidden_width

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class VisualExpert(ImageFirst):
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

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Run the image's expert; its keys and values stay for the text. See `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        dtype = image.dtype  # autocast would leave the residual in half precision
        image = self.proj(image).to(dtype)  # (b, p, dim)
        position = torch.zeros_like(image[:1, :, 0], dtype=torch.long)  # (1, p)
        q, k, v = split_heads(self.image_expert.qkv(image), self.heads, position)
        image = self.image_expert(image, attend(q, k, v, image_mask))
        return ImageMemory(image, image_mask, (k, v, image_mask))

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """Run the text's expert, which sees the image and the text so far. The keys and values of both are kept.

        So what is kept grows with the text, and the cost of a token with it. See `FusionMethod.extend`.
        """
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        k, v, mask, before = memory.past or (*memory.context, None)
        position, so_far = count_on(text, text_mask, before)
        q, text_k, text_v = split_heads(self.text_expert.qkv(text), self.heads, position)
        mask = joint_mask(text, k.shape[2], text_mask=text_mask, image_mask=mask)
        k, v = torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2)  # (b, h, p and the text so far, d)
        text = self.text_expert(text, attend(q, k, v, mask))
        return text, memory._replace(past=(k, v, mask, so_far))


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


def split_heads(
    qkv: Float[Tensor, "b l 3*dim"], heads: int, position: Int[Tensor, "#b l"]
) -> tuple[Float[Tensor, "b h l d"], Float[Tensor, "b h l d"], Float[Tensor, "b h l d"]]:
    """Queries and keys, turned by their positions, and values."""
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return rotate(q, position), rotate(k, position), v


def attend(
    q: Float[Tensor, "b h l d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b l dim"]:
    """Attention of the last l of m positions, each to itself and the real ones before it."""
    l, m = q.shape[2], k.shape[2]
    if mask is None and l == 1:  # it sees all
        attended = F.scaled_dot_product_attention(q, k, v)
    elif mask is None and l == m:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        here, there = (torch.arange(first, m, device=q.device) for first in (m - l, 0))
        seen = there <= here[:, None]  # (l, m)
        if mask is not None:
            # Padding sees itself: not every kernel makes zero of a softmax over nothing.
            seen = (seen & mask[:, None, :]) | (there == here[:, None])
            seen = seen[:, None]  # (b, 1, l, m)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return attended.transpose(1, 2).flatten(2)


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
