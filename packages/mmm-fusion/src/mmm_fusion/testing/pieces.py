"""The rules on texts that are read or written piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_fusion.interface import FusionMethod, ImageMemory
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.parts import described, extend, join, read
from mmm_fusion.testing.probes import compare, kinds_of_image, noise, places, same, where
from mmm_fusion.testing.rule import require, rule

if TYPE_CHECKING:
    from torch import Tensor

CUTS = ((1, 1, 1, 1, 1, 1, 1), (3, 0, 4), (2, 1, 3, 1), (0, 6, 1))
"""Sizes of the pieces of a text of seven words."""
ROUNDING = 1e-5
"""Of the largest gradient: sums are made in another order."""


class PiecesRules(Kit):
    """A test for each rule on pieces."""

    @rule(
        "the output at text position i does not depend on the length of the text: words that follow change nothing.",
        "count from the start of the text; divide by, pool to or norm over no number of words.",
    )
    def test_longer_text(self) -> None:
        """The beginnings of a text give what stands there in the whole; in training the rest is masked out."""
        text, image = self.inputs(l=9, p=12)
        everything = torch.ones(text.shape[:2], dtype=torch.bool)
        for kind, (picture, given) in kinds_of_image(image).items():
            for training in (False, True):
                # One shape in training: a method that draws random numbers draws the same.
                mask = {"text_mask": everything} if training else {}
                whole = self.fused(text, picture, training=training, **given, **mask)
                for l in (1, 4, 8):
                    mask = {"text_mask": torch.arange(9).expand(3, 9) < l} if training else {}
                    words = text if training else text[:, :l]
                    part = self.fused(words, picture, training=training, **given, **mask)
                    stop = places(whole).start + l
                    seen = f"{9 - l} words after the first {l} change these{where(kind, training)}."
                    require(same(part.tokens[:, :stop], whole.tokens[:, :stop]), seen)

    @rule(
        "a text in pieces, by `extend`, gives what `join` gives for the whole, however it is cut; gradients too.",
        "keep in the memory's `past` all that later words need of those before, in tensors of one row a text; count "
        "real tokens only, and detach nothing.",
    )
    def test_text_in_pieces(self) -> None:
        """With pieces of no words, and pieces that are all padding in a row; then with the rows in another order."""
        method = self.make()
        text, image = self.inputs(l=7, p=12)
        for kind, (picture, given) in kinds_of_image(image).items():
            if picture is None:
                continue
            memory = read(method, picture, **given)
            for mask in (None, ragged()):
                at = ... if mask is None else mask
                expected = join(method, text, memory, mask)[at]
                for cut in CUTS:
                    tokens = in_pieces(method, text, memory, mask, cut)[at]
                    case = f"for {described(text, mask, None)}, in pieces of {cut}{where(kind, False)}"
                    require(same(tokens, expected), f"{case}: {compare(tokens, expected)}.")
        self.check_rows_of_a_begun_text(method, text, image)
        self.check_gradients(method, text, image)

    @rule(
        "`join` goes on from the memory that `extend` gives: it gives the same tokens as `extend`.",
        "define `extend` in place of `join`, which then follows from it; or `join` alone, with tokenwise = True.",
    )
    def test_join_goes_on(self) -> None:
        """At the start of a text and later."""
        method = self.make()
        text, image = self.inputs(l=7, p=12)
        for mask in (None, ragged()):
            memory = read(method, image)
            for start, stop in ((0, 3), (3, 7)):
                words, words_mask = text[:, start:stop], None if mask is None else mask[:, start:stop]
                joined = join(method, words, memory, words_mask)
                tokens, memory = extend(method, words, memory, words_mask)
                at = ... if words_mask is None else words_mask
                case = f"for words {start + 1} to {stop} of a text, join and extend differ"
                require(same(joined[at], tokens[at]), f"{case}: {compare(joined[at], tokens[at])}.")

    @rule(
        "`tokenwise` is True only where each text token is joined by itself: no other one matters, nor its place.",
        "leave it False; define `extend`, where what later words need of the text so far is less than all of it.",
    )
    def test_tokenwise(self) -> None:
        """Each word alone gives what it gives in its text, and `extend` keeps nothing of it."""
        method = self.make()
        require(isinstance(method.tokenwise, bool), f"`tokenwise` is {method.tokenwise!r}.")
        if not method.tokenwise:
            return
        text, image = self.inputs(l=7, p=12)
        for kind, (picture, given) in kinds_of_image(image).items():
            if picture is None:
                continue
            memory = read(method, picture, **given)
            whole, after = extend(method, text, memory, None)
            require(not after.past, f"`tokenwise` is True, and extend keeps something{where(kind, False)}.")
            for i in range(text.shape[1]):
                alone = join(method, text[:, i : i + 1], memory, None)
                seen = f"`tokenwise` is True, and word {i} is not what it is alone{where(kind, False)}"
                require(same(alone, whole[:, i : i + 1]), f"{seen}: {compare(alone, whole[:, i : i + 1])}.")

    def check_rows_of_a_begun_text(self, method: FusionMethod, text: Tensor, image: Tensor) -> None:
        """Texts that were begun go on in another order, one of them twice."""
        index = torch.tensor([2, 0, 0, 1])
        memory = read(method, image)
        expected = join(method, text[index], memory.rows(index), None)[:, 3:]
        _, begun = extend(method, text[:, :3], memory, None)
        tokens, _ = extend(method, text[index, 3:], begun.rows(index), None)
        require(same(tokens, expected), f"with memory.rows(index) between two pieces, {compare(tokens, expected)}.")

    def check_gradients(self, method: FusionMethod, text: Tensor, image: Tensor) -> None:
        """By text, image and parameters, of the last words: they pass through the memory."""
        text, image = text.detach().requires_grad_(), image.detach().requires_grad_()
        trained = {f"`{name}`": each for name, each in method.named_parameters() if each.requires_grad}
        inputs = {"`text`": text, "`image`": image, **trained}
        grads = []
        for cut in ((7,), (2, 1, 4)):
            last = in_pieces(method, text, method.read(image), None, cut)[:, 3:]
            total = (last * noise(last.shape, seed=2)).sum()
            if not total.requires_grad:
                return
            grads.append(torch.autograd.grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True))
        for name, whole, parts in zip(inputs, *grads, strict=True):
            far = (whole - parts).abs() > ROUNDING * whole.abs().max() if whole.numel() else whole
            require(not far.any(), f"in pieces, the gradient of {name} is another: {compare(parts, whole)}.")


def ragged() -> Tensor:
    """A mask of three texts of seven words, padded right, left and in between."""
    rows = [[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1, 1]]
    return torch.tensor(rows, dtype=torch.bool)


def in_pieces(
    method: FusionMethod, text: Tensor, memory: ImageMemory, text_mask: Tensor | None, cut: tuple[int, ...]
) -> Tensor:
    """The tokens of a text that is joined piece by piece."""
    tokens = []
    for i, size in enumerate(cut):
        start = sum(cut[:i])
        here = slice(start, start + size)
        piece, memory = extend(method, text[:, here], memory, None if text_mask is None else text_mask[:, here])
        tokens.append(piece)
    return torch.cat(tokens, dim=1)
