"""Methods that cannot be trained, saved and copied as a module is."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from broken_methods.right import PIECES, Right, breaks, shared_out
from torch import nn

from mmm_fusion import (
    FusionOutput,
)


@breaks("parameters_are_registered", "device")
class PlainList(Right):
    def build(self):
        self.scales = [nn.Parameter(torch.ones(self.dim))]

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scales[0].to(text.dtype), image, **masks)


@breaks("parameters_are_registered", "device")
class PlainTensor(Right):
    def build(self):
        self.constants = {"scale": torch.full((self.dim,), 1.5)}

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.constants["scale"].to(text.dtype), image, **masks)


@breaks("parameters_are_registered")
class TensorOfTheClass(Right):
    scale = torch.tensor(1.5)

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scale, image, **masks)


@breaks("state_dict")
class RandomConstant(Right):
    def build(self):
        self.register_buffer("direction", torch.randn(self.dim), persistent=False)

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.direction, image, **masks)


@breaks("parameters_are_not_shared")
class OneParameterTwoNames(Right):
    def build(self):
        self.again = nn.Linear(self.image_dim, self.dim)
        self.again.weight = self.proj.weight

    def fuse(self, text, image, **masks):
        return super().fuse(text + shared_out(text, self.again(image), **masks), image, **masks)


@breaks("parameters_are_not_shared")
class BufferOnAParameter(Right):
    def build(self):
        self.register_buffer("first", self.proj.weight.detach()[:1])


KEPT: dict[int, nn.Parameter] = {}


@breaks("parameters_are_not_shared", "evaluation_draws_no_random_numbers", "causal", "longer_text", "rows_do_not_mix")
class OneParameterForAll(Right):
    def build(self):
        self.scale = KEPT.setdefault(self.dim, nn.Parameter(torch.ones(self.dim)))

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scale, image, **masks)


@breaks("state_dict", "parameters_are_registered", "read_then_join", "many_texts_of_one_image", *PIECES)
class MakesParametersLate(Right):
    def fuse(self, text, image, **masks):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones_like(text[0, 0]))
        return super().fuse(text * self.scale, image, **masks)


@breaks("state_dict")
class TrainsANumber(Right):
    def build(self):
        self.level = 1.0

    def fuse(self, text, image, **masks):
        self.level += 0.1 if self.training else 0.0
        return super().fuse(text * self.level, image, **masks)


@breaks("state_dict")
class StateOfNoTensors(Right):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state): ...


class Holder:
    weight = None


@breaks("state_dict")
class RemembersItsFirstWeights(Right):
    def build(self):
        self.holder = Holder()

    def fuse(self, text, image, **masks):
        if self.training or torch.is_grad_enabled():
            return super().fuse(text, image, **masks)
        if self.holder.weight is None:
            self.holder.weight = self.proj.weight.detach().clone()
        share = shared_out(text, F.linear(image, self.holder.weight, self.proj.bias), **masks)
        return FusionOutput(text + share, slice(0, text.shape[1]), masks["text_mask"])


@breaks("copies")
class HoldsALock(Right):
    def build(self):
        self.lock = threading.Lock()


@breaks("copies", "parameters_are_registered")
class KeepsItsLastOutput(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        self.last = output.tokens
        return output
