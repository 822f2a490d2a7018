"""Methods whose output depends on the wrong things."""

from __future__ import annotations

import torch
from broken_methods.right import FUTURE, PARTS, WITHOUT_AN_IMAGE, Right, RightConcat, RightOnAGrid, breaks
from torch import nn

from mmm_fusion import (
    FusionOutput,
)


@breaks("image_matters", "inputs_get_gradients")
class IgnoresTheImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, torch.ones_like(image), **masks)


@breaks("image_matters", "row_without_image", "image_padding", "padding_may_hold_nan")
class HidesTheImage(RightConcat):
    def fuse(self, text, image, text_mask, image_mask):
        hidden = None if image_mask is None else torch.zeros_like(image_mask)
        return super().fuse(text, image, text_mask=text_mask, image_mask=hidden)


@breaks(
    "image_matters",
    "parameters_get_gradients",
    "image_padding",
    "padding_may_hold_nan",
    "inputs_get_gradients",
    "start_can_learn",
)
class ImageOfTheSameLengthOnly(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        return output if text.shape[1] == image.shape[1] else output._replace(tokens=text)


@breaks("image_matters", "parameters_get_gradients", "inputs_get_gradients")
class IgnoresTheImageOnAGrid(RightOnAGrid):
    def on_grid(self, image):
        return super().on_grid(image * 0)


@breaks(*FUTURE)
class ReadsTheFuture(Right):
    def fuse(self, text, image, **masks):
        later = text.flip(1).cumsum(1).flip(1)
        return super().fuse(later, image, **masks)


@breaks("causal", "longer_text", *PARTS, "inputs_get_gradients")
class ImageReadsTheText(RightConcat):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        seen = torch.zeros_like(output.tokens)
        seen[:, : image.shape[1]] = text.sum(dim=1, keepdim=True)
        return output._replace(tokens=output.tokens + seen)


@breaks("no_image", *WITHOUT_AN_IMAGE)
class NeedsAnImage(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        image = image + 0
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)


@breaks("no_image", "row_without_image")
class PlaceholderForNoImage(RightConcat):
    def fuse(self, text, image, **masks):
        image = image if image.shape[1] else image.new_zeros(len(image), 1, self.image_dim)
        return super().fuse(text, image, **masks)


@breaks("row_without_image")
class BiasWithoutImage(Right):
    def fuse(self, text, image, text_mask, image_mask):
        count = image.shape[1] if image_mask is None else image_mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = image.sum(dim=1) / count if image.shape[1] else None
        shift = 0 if mean is None else self.proj(mean)[:, None]
        return FusionOutput(text + shift, slice(0, text.shape[1]), text_mask)


@breaks("image_matters", "inputs_get_gradients")
class IgnoresTheImageInTraining(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, torch.ones_like(image) if self.training else image, **masks)


@breaks("text_matters", "inputs_get_gradients")
class IgnoresTheText(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(torch.zeros_like(text), image, **masks)


@breaks("text_matters", "inputs_get_gradients", "row_without_image")
class IgnoresTheTextWithoutAnImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text if image.shape[1] else torch.zeros_like(text), image, **masks)


@breaks("causal", "longer_text", "inputs_get_gradients")
class ReadsTheFutureInTraining(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text + text.mean(dim=1, keepdim=True) if self.training else text, image, **masks)


@breaks(*FUTURE)
class InstanceNormOverTheWords(Right):
    def build(self):
        self.norm = nn.InstanceNorm1d(self.dim, affine=True, track_running_stats=True)

    def fuse(self, text, image, **masks):
        return super().fuse(self.norm(text.mT).mT if text.shape[1] > 1 else text, image, **masks)


@breaks(*FUTURE)
class ReadsTheFutureWithoutAnImage(Right):
    def fuse(self, text, image, text_mask, image_mask):
        seen = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
        later = text.sum(dim=1, keepdim=True) * ~seen.any(dim=1)[:, None, None]
        return super().fuse(text + later, image, text_mask=text_mask, image_mask=image_mask)
