"""Methods that break the rules on form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from broken_methods.right import PADDING, PARTS, PIECES, RULES, WITH_A_GRID, Right, RightConcat, RightOnAGrid, breaks
from torch import Tensor, nn

from mmm_fusion import (
    prepend,
)
from mmm_fusion.methods import Concat


@breaks("signatures")
class CapitalName(Right):
    name = "Capital"


@breaks("signatures")
class NewerContract(Right):
    contract = 2


@breaks("signatures", *WITH_A_GRID, *PARTS, *PIECES)
class NoGrid(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None):
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("signatures", "read_then_join", *PIECES, "inputs_are_left_alone", "inputs_get_gradients", "dtype", "device")
class ReadWithoutAGrid(Right):
    def read(self, image, *, image_mask):
        return super().read(image, image_mask=image_mask)


@breaks("signatures", *(rule for rule in RULES if rule != "signatures"))
class NoHeads(Right):
    def __init__(self, dim, image_dim, *, dropout):
        super().__init__(dim, image_dim, heads=1, dropout=dropout)


class LookAlike(NamedTuple):
    tokens: Tensor
    text: slice
    mask: Tensor | None


@breaks("output", "mask", "lengths_are_free", "widths_are_free", "no_image", "text_of_no_tokens")
class AnotherTuple(Right):
    def fuse(self, text, image, **masks):
        return LookAlike(*super().fuse(text, image, **masks))


@breaks("mask", "no_image", "row_without_image", *PADDING, "read_then_join", "many_texts_of_one_image")
class ForgetsTheMask(RightConcat):
    def fuse(self, text, image, **masks):
        return super().fuse(text, image, **masks)._replace(mask=None)


@breaks("mask", "no_image")
class AlwaysAMask(RightConcat):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        everything = torch.ones(output.tokens.shape[:2], dtype=torch.bool)
        return output._replace(mask=everything if output.mask is None else output.mask)


@breaks("lengths_are_free")
class WideGridsOnly(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        output = super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        if image_grid is not None and image_grid[0] > image_grid[1]:
            raise NotImplementedError("a wide grid")
        return output


@breaks("grid_must_match")
class AnyGrid(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("grid_must_match")
class CrashesOnAnotherGrid(RightOnAGrid):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        try:
            return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        except ValueError as error:
            raise RuntimeError("shape mismatch") from error


@breaks("widths_are_free")
class WidthBuiltIn(Right):
    def build(self):
        self.proj = nn.Linear(20, self.dim)


@breaks("image_before_text", *PARTS, "autocast")
class TextFirst(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = prepend(text, self.proj(image), text_mask=image_mask, image_mask=text_mask)
        return output._replace(text=slice(0, text.shape[1]))


@breaks("image_before_text", "mask", *PARTS, "text_matters")
class OffByOne(RightConcat):
    def fuse(self, text, image, **masks):
        output, p = super().fuse(text, image, **masks), image.shape[1]
        return output._replace(text=slice(p - 1, p - 1 + text.shape[1])) if p else output


@breaks("signatures")
class NameOfABuiltIn(Concat): ...


@breaks("lengths_are_free")
class TableOfPositions(Right):
    def build(self):
        self.positions = nn.Parameter(torch.randn(64, self.dim))

    def fuse(self, text, image, text_mask, image_mask):
        real = torch.ones_like(text[..., 0], dtype=torch.bool) if text_mask is None else text_mask
        text = text + self.positions[(real.cumsum(dim=1) - 1).clamp(min=0)]
        return super().fuse(text, image, text_mask=text_mask, image_mask=image_mask)
