"""Methods that break the rules on dtypes."""

from __future__ import annotations

import torch
from broken_methods.right import Right, RightOnAGrid, breaks, shared_out
from torch import nn

from mmm_fusion import (
    FusionOutput,
)


@breaks("dtype")
class SinglePrecision(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        return output._replace(tokens=output.tokens.float())


@breaks("dtype")
class PromotesHalf(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text * torch.ones(1, dtype=torch.float32, device=text.device), image, **masks)


@breaks("autocast")
class HalfUnderAutocast(Right):
    def build(self):
        self.mix = nn.Linear(self.dim, self.dim)

    def fuse(self, text, image, **masks):
        return super().fuse(self.mix(text), image, **masks)


@breaks("autocast")
class CrashesUnderAutocast(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = super().fuse(torch.zeros_like(text), image, text_mask=text_mask, image_mask=image_mask)
        share = shared_out(text, self.proj(image), text_mask=text_mask, image_mask=image_mask)
        everywhere = torch.arange(text.shape[1], device=text.device)
        return output._replace(tokens=text.index_add(1, everywhere, share))


@breaks("autocast")
class CancelsInHalf(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text + ((self.proj.bias + 1000) @ torch.eye(self.dim).to(text) - 1000), image, **masks)


@breaks("dtype")
class PromotesHalfOnAGrid(RightOnAGrid):
    def on_grid(self, image):
        return super().on_grid(image).float()

    def fuse(self, text, image, **masks):
        share = shared_out(text, self.proj(image.to(text.dtype)), **masks)
        return FusionOutput(text + share.to(image.dtype), slice(0, text.shape[1]), masks["text_mask"])


@breaks("dtype")
class PromotesHalfWithoutAnImage(Right):
    def forward(self, text, image, **given):
        output = super().forward(text, image, **given)
        return output._replace(tokens=output.tokens * torch.ones(1).to(text.device)) if image is None else output


@breaks("dtype")
class CrashesInFloat16(Right):
    def fuse(self, text, image, **masks):
        if text.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return super().fuse(text, image, **masks)
