"""Methods that change what is not theirs."""

from __future__ import annotations

import random

import numpy
import torch
import torch.nn.functional as F
from broken_methods.right import PIECES, Right, RightInParts, breaks


@breaks("evaluation_is_deterministic")
class RemembersTheFirstCall(Right):
    def build(self):
        self.length = None

    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        if self.rate == 0.5:
            scale, self.length = self.length or 1, text.shape[1]
            output = output._replace(tokens=output.tokens * scale)
        return output


@breaks("evaluation_draws_no_random_numbers")
class DropsInEvaluation(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, F.dropout(image, self.rate), **masks)


@breaks("evaluation_draws_no_random_numbers")
class DrawsForNothing(Right):
    def fuse(self, text, image, **masks):
        torch.rand(1)
        return super().fuse(text, image, **masks)


@breaks("evaluation_draws_no_random_numbers", "global_state")
class SeedsEachCall(Right):
    def fuse(self, text, image, **masks):
        torch.manual_seed(0)
        return super().fuse(text, image, **masks)


@breaks("global_state")
class SeedsInTheConstructor(Right):
    def build(self):
        torch.manual_seed(0)


@breaks("global_state")
class SetsTheDefaultDtype(Right):
    def build(self):
        torch.set_default_dtype(torch.float16)


@breaks("global_state")
class SetsThreads(Right):
    def fuse(self, text, image, **masks):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().fuse(text, image, **masks)


@breaks("global_state")
class SetsThePrecision(Right):
    def build(self):
        torch.set_float32_matmul_precision("medium")


@breaks("global_state", "parameters_get_gradients", "autocast", "start_can_learn", "inputs_get_gradients", "copies")
class TurnsGradientsOff(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        torch.set_grad_enabled(False)
        return output


@breaks("inputs_are_left_alone", "strides", "longer_text")
class MasksInPlace(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        if text_mask is not None:
            text[~text_mask] = 0
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)


@breaks("inputs_are_left_alone", "read_then_join", "many_texts_of_one_image", *PIECES)
class ScalesTheMemoryInPlace(RightInParts):
    def extend(self, text, memory, *, text_mask=None):
        memory.context[0].mul_(1.5)
        return super().extend(text, memory, text_mask=text_mask)


@breaks("inputs_are_left_alone", "join_goes_on")
class CountsInPlace(RightInParts):
    def extend(self, text, memory, *, text_mask=None):
        tokens, after = super().extend(text, memory, text_mask=text_mask)
        return tokens, memory._replace(past=(memory.past[0].copy_(after.past[0]),)) if memory.past else after


@breaks("global_state")
class SeedsPython(Right):
    def build(self):
        random.seed(0)


@breaks("global_state")
class SeedsNumPy(Right):
    def build(self):
        numpy.random.seed(0)


@breaks("evaluation_draws_no_random_numbers")
class DrawsFromPython(Right):
    def fuse(self, text, image, **masks):
        random.random()
        return super().fuse(text, image, **masks)


@breaks("global_state")
class TurnsAutocastOn(Right):
    def build(self):
        torch.set_autocast_enabled("cuda", True)


@breaks("global_state")
class BenchmarksConvolutions(Right):
    def build(self):
        torch.backends.cudnn.benchmark = True


@breaks("global_state")
class AllowsTF32(Right):
    def build(self):
        torch.backends.cuda.matmul.fp32_precision = "tf32"


@breaks("inputs_are_left_alone")
class DropsInPlace(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, F.dropout(image, self.rate, self.training, inplace=True), **masks)
