"""Methods whose `read` and `join` are not what `forward` is."""

from __future__ import annotations

import torch
from broken_methods.right import PARTS, PIECES, Right, RightConcat, RightInParts, RightOnAGrid, breaks


@breaks("read_then_join", "many_texts_of_one_image")
class ReadsAnotherImage(RightConcat):
    def read(self, image, **given):
        return super().read(-image, **given)


@breaks("read_then_join", "many_texts_of_one_image")
class JoinForgetsTheMask(Right):
    def join(self, text, memory, *, text_mask=None):
        return super().join(text, memory)


@breaks("read_then_join")
class ReadForgetsTheGrid(RightOnAGrid):
    def read(self, image, *, image_mask=None, image_grid=None):
        return super().read(image, image_mask=image_mask)


@breaks("read_then_join", "many_texts_of_one_image")
class ForgetsTheMaskOfThePrefix(RightConcat):
    def read(self, image, **given):
        return super().read(image, **given)._replace(prefix_mask=None)


@breaks("many_texts_of_one_image", "text_in_pieces")
class ContextOfNoTensors(RightInParts):
    def read(self, image, **given):
        memory = super().read(image, **given)
        return memory._replace(context=([*memory.context],))

    def extend(self, text, memory, *, text_mask=None):
        tokens, after = super().extend(text, memory._replace(context=memory.context[0]), text_mask=text_mask)
        return tokens, after._replace(context=memory.context)


@breaks(*PARTS[::-1], *PIECES, "inputs_are_left_alone", "inputs_get_gradients", "dtype", "device")
class NeedsAWord(Right):
    def fuse(self, text, image, **masks):
        bound = text.detach().abs().amax(dim=1, keepdim=True)
        return super().fuse(torch.where(text > 1e9 * bound, 0, text), image, **masks)


@breaks("text_of_no_tokens", "read_then_join", "many_texts_of_one_image", "text_in_pieces")
class PlaceholderForNoText(Right):
    def fuse(self, text, image, text_mask, image_mask):
        text = text if text.shape[1] else text.new_zeros(len(text), 1, self.dim)
        return super().fuse(text, image, text_mask=text_mask, image_mask=image_mask)
