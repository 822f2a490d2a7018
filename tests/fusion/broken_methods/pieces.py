"""Methods that fuse a text in pieces, or one that goes on, otherwise than as a whole."""

from __future__ import annotations

import torch
from broken_methods.right import PIECES, Right, RightConcat, RightInParts, breaks

from mmm_fusion import check_text


def length(text, text_mask):
    """The number of real words of each row."""
    everything = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return (everything if text_mask is None else text_mask).sum(dim=1)[:, None, None]


@breaks("longer_text", "text_in_pieces")
class DividesByTheLength(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text / length(text, masks["text_mask"]).clamp(min=1), image, **masks)


@breaks("longer_text")
class DividesByTheLengthInTraining(Right):
    def fuse(self, text, image, **masks):
        count = length(text, masks["text_mask"]).clamp(min=1)
        return super().fuse(text / count if self.training else text, image, **masks)


class Sums(RightInParts):
    """To each word the sum of those before it, and its share of the image: a right method."""

    def extend(self, text, memory, *, text_mask=None):
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        before, *count = memory.past or (text.new_zeros(len(text), self.dim),)
        sums = before[:, None] + text.cumsum(dim=1)
        tokens, after = super().extend(sums, memory._replace(past=tuple(count)), text_mask=text_mask)
        return tokens, after._replace(past=(before + text.sum(dim=1), *after.past))


@breaks("text_in_pieces")
class BeginsAnew(Sums):
    def extend(self, text, memory, *, text_mask=None):
        return super().extend(text, memory._replace(past=()), text_mask=text_mask)


@breaks("text_in_pieces")
class CountsPaddingOfEarlierPieces(RightInParts):
    def extend(self, text, memory, *, text_mask=None):
        tokens, after = super().extend(text, memory, text_mask=text_mask)
        hidden = 0 if text_mask is None else (~text_mask).sum(dim=1)
        return tokens, after._replace(past=(after.past[0] + hidden,))


@breaks("text_in_pieces")
class DetachesThePast(Sums):
    def extend(self, text, memory, *, text_mask=None):
        tokens, after = super().extend(text, memory, text_mask=text_mask)
        return tokens, after._replace(past=tuple(each.detach() for each in after.past))


@breaks("text_in_pieces")
class PastOfNoTensors(Sums):
    """`rows` finds no tensor in a list."""

    def extend(self, text, memory, *, text_mask=None):
        tokens, after = super().extend(text, memory._replace(past=tuple(*memory.past)), text_mask=text_mask)
        return tokens, after._replace(past=([*after.past],))


@breaks(*PIECES, "inputs_are_left_alone", "dtype", "device")
class ExtendsToTokensAlone(RightConcat):
    def extend(self, text, memory, *, text_mask=None):
        return self.join(text, memory, text_mask=text_mask)


@breaks("join_goes_on")
class JoinsWithoutThePast(Right):
    """As written before there was `extend`: by `FusionMethod.extend` its texts go on."""

    def join(self, text, memory, *, text_mask=None):
        return super().join(text, memory._replace(past=()), text_mask=text_mask)


@breaks("tokenwise", "text_in_pieces")
class SaysTokenwise(Right):
    tokenwise = True


@breaks("tokenwise")
class SaysTokenwiseAndKeepsACount(RightInParts):
    tokenwise = True


@breaks("tokenwise")
class TokenwiseInWords(RightConcat):
    tokenwise = "no"
