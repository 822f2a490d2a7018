"""Methods that take tensors of some strides only, or on the CPU only."""

from __future__ import annotations

import torch
from broken_methods.right import Right, breaks


@breaks("strides")
class ViewsTheImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, image.view(-1, self.image_dim).view_as(image), **masks)


@breaks("device")
class ConstantsOnTheCPU(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text + 0 * torch.arange(text.shape[1], device="cpu")[:, None], image, **masks)
