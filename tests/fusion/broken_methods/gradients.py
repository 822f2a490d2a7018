"""Methods that do not train, or in which what is around them does not."""

from __future__ import annotations

import torch
from broken_methods.right import Right, RightConcat, RightInParts, breaks, shared_out
from torch import nn

from mmm_fusion import (
    FusionOutput,
)


@breaks("parameters_get_gradients")
class Unused(Right):
    def build(self):
        self.unused = nn.Linear(3, 3)


@breaks("parameters_get_gradients", "start_can_learn", "inputs_get_gradients")
class Detached(Right):
    def fuse(self, text, image, **masks):
        share = shared_out(text, self.proj(image).detach(), **masks)
        return FusionOutput(text + share, slice(0, text.shape[1]), masks["text_mask"])


@breaks("parameters_get_gradients")
class Frozen(Right):
    def build(self):
        self.proj.bias.requires_grad_(False)


@breaks("inputs_get_gradients")
class DetachesTheImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, image.detach(), **masks)


@breaks("inputs_get_gradients")
class DetachesTheText(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text.detach(), image, **masks)


@breaks("inputs_get_gradients")
class ReadsADetachedImage(RightInParts):
    def read(self, image, **given):
        return super().read(image.detach(), **given)


@breaks("inputs_get_gradients")
class ReadsWithoutAGraph(RightConcat):
    @torch.no_grad()
    def read(self, image, **given):
        return super().read(image, **given)


@breaks("inputs_get_gradients")
class GradientsOfOtherRows(Right):
    def fuse(self, text, image, **masks):
        mean = text.mean(dim=0, keepdim=True)
        return super().fuse(text + mean - mean.detach(), image, **masks)


@breaks("inputs_get_gradients")
class GradientsOfLaterWords(Right):
    def fuse(self, text, image, **masks):
        total = text.sum(dim=1, keepdim=True)
        return super().fuse(text + total - total.detach(), image, **masks)


@breaks("start_can_learn")
class TwoClosedGates(Right):
    def build(self):
        self.one, self.other = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def fuse(self, text, image, **masks):
        share = shared_out(text, self.proj(image), **masks)
        return FusionOutput(text + self.one * self.other * share, slice(0, text.shape[1]), masks["text_mask"])
