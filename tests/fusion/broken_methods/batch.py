"""Methods to which padding, or another row of the batch, makes a difference."""

from __future__ import annotations

import torch
from broken_methods.right import Right, RightOnAGrid, breaks
from torch import nn

from mmm_fusion import (
    check_inputs,
    prepend,
)
from mmm_fusion.methods.visual_expert import attend, split_heads


@breaks("text_padding", "padding_may_hold_nan")
class CountsPadding(Right):
    def fuse(self, text, image, **masks):
        place = torch.arange(text.shape[1]).to(text)[:, None].sin()
        return super().fuse(text + place, image, **masks)


@breaks("text_padding", "padding_may_hold_nan")
class PoolsToThePaddedText(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = super().fuse(text, image, text_mask=None, image_mask=image_mask)
        return output._replace(mask=text_mask)


@breaks("image_padding", "row_without_image", "padding_may_hold_nan")
class PoolsPadding(Right):
    def fuse(self, text, image, text_mask, image_mask):
        return super().fuse(text, image, text_mask=text_mask, image_mask=None)


@breaks("padding_may_hold_nan", "grid_must_match")
class MultipliesByTheMask(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        text = text if text_mask is None else text * text_mask[..., None]
        image = image if image_mask is None else image * image_mask[..., None]
        image = text.new_zeros(len(text), 0, self.image_dim) if image is None else image
        return self.fuse(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("padding_may_hold_nan", "text_padding", "image_padding", "row_without_image")
class AttendsToPadding(Right):
    def build(self):
        self.qkv = nn.Linear(self.dim, 3 * self.dim)

    def fuse(self, text, image, **masks):
        output = prepend(self.proj(image), text, **masks)
        place = torch.arange(output.tokens.shape[1], device=text.device)[None]
        attended = attend(*split_heads(self.qkv(output.tokens), self.heads, place), None)
        return output._replace(tokens=output.tokens + attended)


@breaks("rows_do_not_mix", "text_padding", "image_padding", "padding_may_hold_nan", "inputs_get_gradients")
class SubtractsTheBatchMean(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text - 0.1 * text.mean(dim=0, keepdim=True), image, **masks)


@breaks("rows_do_not_mix", "causal", "longer_text", "inputs_get_gradients")
class BatchNorm(Right):
    def build(self):
        self.norm = nn.BatchNorm1d(self.dim)

    def fuse(self, text, image, **masks):
        return super().fuse(self.norm(text.flatten(0, 1)).view_as(text), image, **masks)


@breaks("rows_do_not_mix", "inputs_get_gradients")
class BatchNormOnAGrid(RightOnAGrid):
    def build(self):
        super().build()
        self.norm = nn.BatchNorm2d(self.image_dim)

    def on_grid(self, image):
        return super().on_grid(self.norm(image))


@breaks("padding_may_hold_nan", "image_padding")
class PaddingFlowsOverTheGrid(RightOnAGrid):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        _, zeroed = check_inputs(self, text, image, **masks, image_grid=image_grid)
        image = zeroed if image_grid is None else zeroed + 0.1 * image.mean(dim=1, keepdim=True)
        return super().forward(text, image, **masks, image_grid=image_grid)
