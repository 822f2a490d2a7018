"""The rules on `read` and `join`, the two parts that let one image serve many texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmm_fusion.interface import FusionMethod, FusionOutput, ImageMemory
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import check_output, compare, fuse, masks, real, same
from mmm_fusion.testing.rule import require, rule

if TYPE_CHECKING:
    from torch import Tensor


class PartsRules(Kit):
    """A test for each rule on `read` and `join`."""

    @rule(
        "`read`, then `join`, gives what `forward` gives.",
        "make forward of the two, as ImageFirst does, or leave both as FusionMethod has them.",
    )
    def test_read_then_join(self) -> None:
        """With and without masks and a grid, for two texts after one another."""
        method = self.make()
        text, image = self.inputs(p=12)
        other = self.inputs(l=3, p=12, seed=1)[0]
        text_mask, image_mask = masks(text, image)
        for mask in (None, image_mask):
            for grid in (None, (3, 4)):
                given = {"image_mask": mask, "image_grid": grid}
                memory = read(method, image, **given)
                for words, words_mask in ((text, None), (text, text_mask), (other, None)):
                    expected = fuse(method, words, image, text_mask=words_mask, **given)
                    parts = put_together(memory, join(method, words, memory, words_mask), words_mask)
                    check_equal(parts, expected, f"{described(words, words_mask, mask)} with image_grid={grid}")

    @rule(
        "memory.rows(index) gives each of several texts the image it asks for.",
        "keep in ImageMemory.context tensors of one row an image, and nothing else that differs between images.",
    )
    def test_many_texts_of_one_image(self) -> None:
        """Five texts about three images, in any order."""
        method = self.make()
        _, image = self.inputs()
        index = torch.tensor([2, 0, 0, 1, 2])
        text = torch.cat([self.inputs()[0], self.inputs(seed=1)[0]])[:5]
        text_mask = torch.ones(text.shape[:2], dtype=torch.bool)
        text_mask[1, 3:] = text_mask[4, :2] = False
        for mask in (None, masks(text, image)[1]):
            memory = read(method, image, image_mask=mask).rows(index)
            for words_mask in (None, text_mask):
                rows = None if mask is None else mask[index]
                expected = fuse(method, text, image[index], text_mask=words_mask, image_mask=rows)
                parts = put_together(memory, join(method, text, memory, words_mask), words_mask)
                check_equal(parts, expected, described(text, words_mask, mask))

    @rule(
        "a text of no tokens, l = 0, gives the tokens that stand before every text of that image.",
        "take any l in forward and join, 0 too: divide by no length, and reduce over no empty axis.",
    )
    def test_text_of_no_tokens(self) -> None:
        """What `read` makes of `forward`, and what a generator of texts begins with."""
        method = self.make()
        text, image = self.inputs()
        nothing = text[:, :0]
        for mask in (None, masks(text, image)[1]):
            whole, alone = (fuse(method, words, image, image_mask=mask) for words in (text, nothing))
            check_output(alone, nothing)
            before = whole.tokens.shape[1] - text.shape[1]
            whole = FusionOutput(whole.tokens[:, :before], slice(before, before), sliced(whole.mask, before))
            check_equal(alone, whole, described(nothing, None, mask))
            joined = join(method, nothing, read(method, image, image_mask=mask), None)
            require(joined.shape == nothing.shape, f"join gives {tuple(joined.shape)} for {tuple(nothing.shape)}.")


@torch.no_grad()
def read(method: FusionMethod, image: Tensor, **given: Any) -> ImageMemory:
    """Read images without a graph."""
    memory = method.read(image, **given)
    require(isinstance(memory, ImageMemory), f"read gives {type(memory).__name__} in place of ImageMemory.")
    return memory


@torch.no_grad()
def join(method: FusionMethod, text: Tensor, memory: ImageMemory, text_mask: Tensor | None) -> Tensor:
    """Join texts without a graph."""
    return method.join(text, memory, text_mask=text_mask)


def extend(
    method: FusionMethod, text: Tensor, memory: ImageMemory, text_mask: Tensor | None
) -> tuple[Tensor, ImageMemory]:
    """Join a piece of a text."""
    result = method.extend(text, memory, text_mask=text_mask)
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], ImageMemory)
    require(pair, f"extend gives {type(result).__name__} in place of (tokens, ImageMemory).")
    tokens = result[0]
    require(tokens.shape == text.shape, f"extend gives {tuple(tokens.shape)} for {tuple(text.shape)}.")
    return result


def put_together(memory: ImageMemory, text: Tensor, text_mask: Tensor | None) -> FusionOutput:
    """The sequence that the two parts give."""
    k, l = memory.prefix.shape[1], text.shape[1]
    mask = torch.cat([whole(memory.prefix_mask, memory.prefix), whole(text_mask, text)], dim=1)
    return FusionOutput(torch.cat([memory.prefix, text], dim=1), slice(k, k + l), mask)


def check_equal(a: FusionOutput, b: FusionOutput, where: str) -> None:
    """Refuse two outputs that differ in their real tokens, or in which those are."""
    require(a.tokens.shape == b.tokens.shape, f"for {where}, {compare(a.tokens, b.tokens)}.")
    require(a.text.indices(a.tokens.shape[1]) == b.text.indices(a.tokens.shape[1]), f"the text at {a.text}, {b.text}.")
    one, other = whole(a.mask, a.tokens), whole(b.mask, b.tokens)
    require(torch.equal(one, other), f"for {where}, the mask {one} in place of {other}.")
    for row, (x, y) in enumerate(zip(real(a), real(b), strict=True)):
        require(same(x, y), f"for {where}, row {row} differs: {compare(x, y)}.")


def whole(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """The mask, or where there is none, one that says the same."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


def sliced(mask: Tensor | None, stop: int) -> Tensor | None:
    """The first positions of a mask."""
    return None if mask is None else mask[:, :stop]


def described(text: Tensor, text_mask: Tensor | None, image_mask: Tensor | None) -> str:
    """An input in words."""
    given = [name for name, mask in (("text_mask", text_mask), ("image_mask", image_mask)) if mask is not None]
    return f"l = {text.shape[1]} and {' and '.join(given) or 'no mask'}"
