"""Methods that keep the contract in unusual ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from broken_methods.right import Right
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmm_fusion import (
    FusionMethod,
)

UNUSUAL: list[type[FusionMethod]] = []


def accepted(method: type[FusionMethod]) -> type[FusionMethod]:
    """Enter a class among those that the kit must accept."""
    UNUSUAL.append(method)
    return method


@accepted
class GRUOverTheText(Right):
    """torch's GRU keeps a second list of its parameters."""

    def build(self):
        self.gru = nn.GRU(self.dim, self.dim, batch_first=True)

    def fuse(self, text, image, text_mask, image_mask):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        if text.shape[1] == 0:
            return super().fuse(text, image, **masks)
        real = torch.ones_like(text[..., 0], dtype=torch.bool) if text_mask is None else text_mask
        order = real.int().argsort(dim=1, descending=True, stable=True)[..., None]
        read = self.gru(text.take_along_dim(order, 1))[0].take_along_dim(order.argsort(dim=1), 1)
        return super().fuse(text + read.to(text.dtype), image, **masks)


@accepted
class DropoutOfItsOwn(Right):
    """In training its output is another each time, whatever `dropout` is."""

    def fuse(self, text, image, **masks):
        return super().fuse(text, F.dropout(image, 0.3, self.training), **masks)


@accepted
class SpectralNorm(Right):
    """In training each call changes a buffer."""

    def build(self):
        self.proj = nn.utils.parametrizations.spectral_norm(self.proj)


@accepted
class WeightNorm(Right):
    """Its weight is computed."""

    def build(self):
        self.proj = nn.utils.parametrizations.weight_norm(self.proj)


@accepted
class CountsItsCalls(Right):
    """A buffer of integers."""

    def build(self):
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def fuse(self, text, image, **masks):
        self.calls += self.training
        return super().fuse(text, image, **masks)


@accepted
class VectorForNoImage(Right):
    """A parameter that a row with an image does not use."""

    def build(self):
        self.absent = nn.Parameter(torch.zeros(self.dim))

    def fuse(self, text, image, text_mask, image_mask):
        seen = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
        text = text + ~seen.any(dim=1)[:, None, None] * self.absent
        return super().fuse(text, image, text_mask=text_mask, image_mask=image_mask)


@accepted
class ComplexNumbers(Right):
    """A parameter in complex64."""

    def build(self):
        self.turns = nn.ParameterList([torch.ones(self.dim // 2, dtype=torch.complex64)])

    def fuse(self, text, image, **masks):
        pairs = torch.complex(text[..., ::2].float(), text[..., 1::2].float())
        turned = torch.view_as_real(pairs * self.turns[0]).flatten(2)
        return super().fuse(text + turned.to(text.dtype), image, **masks)


@accepted
class StraightThrough(Right):
    """Image tokens, replaced by the nearest of eight, as the gradient does not see."""

    def build(self):
        self.codes = nn.Parameter(torch.randn(8, self.image_dim))

    def fuse(self, text, image, **masks):
        likeness = image @ self.codes.mT
        chosen, soft = F.one_hot(likeness.argmax(dim=-1), 8).to(image.dtype), likeness.softmax(dim=-1)
        return super().fuse(text, (chosen + soft - soft.detach()) @ self.codes, **masks)


@accepted
class Recomputes(Right):
    """Activations are computed again in the backward."""

    def fuse(self, text, image, **masks):
        return super().fuse(text, checkpoint(torch.tanh, image, use_reentrant=False), **masks)


@accepted
class AttentionOfTorch(Right):
    """nn.MultiheadAttention, with a branch for no image."""

    def build(self):
        widths = {"kdim": self.image_dim, "vdim": self.image_dim}
        self.attention = nn.MultiheadAttention(self.dim, self.heads, **widths, batch_first=True, bias=False)

    def fuse(self, text, image, text_mask, image_mask):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        if image.shape[1] == 0:
            return super().fuse(text, image, **masks)
        seen = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
        blind = ~seen.any(dim=1)[:, None]
        attended, _ = self.attention(text, image, image, key_padding_mask=~(seen | blind), need_weights=False)
        return super().fuse(text + attended.masked_fill(blind[..., None], 0), image, **masks)
