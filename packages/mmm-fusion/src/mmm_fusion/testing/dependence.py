"""The rules on what the output depends on: the image, the text so far, and nothing else."""

from __future__ import annotations

import torch

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import (
    check_output,
    compare,
    fuse,
    kinds_of_image,
    masks,
    places,
    real,
    same,
    where,
    words,
)
from mmm_fusion.testing.rule import require, rule


class DependenceRules(Kit):
    """A test for each rule on dependence."""

    @rule(
        "the image changes the text, or stands before it in the sequence.",
        "use the image in every call, whatever l and p are, in training too.",
    )
    def test_image_matters(self) -> None:
        """Another image gives other real tokens, in every row."""
        for l, p in ((5, 12), (6, 6), (7, 4)):
            text, image = self.inputs(l=l, p=p)
            other = self.inputs(l=l, p=p, seed=1)[1]
            everything = torch.ones(image.shape[:2], dtype=torch.bool)
            for given in ({}, {"image_mask": everything}, {"image_grid": (2, p // 2)}):
                for training in (False, True):
                    a, b = (real(self.fused(text, each, training=training, **given)) for each in (image, other))
                    changed = [not same(before, after) for before, after in zip(a, b, strict=True)]
                    case = f"l = {l}, p = {p}{''.join(f' and {name}' for name in given)}"
                    mode = ", in training" if training else ""
                    require(all(changed), f"two images, one output, for {case}{mode}.")

    @rule(
        "the output at text position i depends on the text at i.",
        "keep the text: add to it, or take its place by what is made of it.",
    )
    def test_text_matters(self) -> None:
        """Another word at i gives another output at i, in every row."""
        text, image = self.inputs(p=12)
        other = self.inputs(seed=1)[0]
        for kind, (picture, given) in kinds_of_image(image).items():
            for training in (False, True):
                output = self.fused(text, picture, training=training, **given)
                for i in range(text.shape[1]):
                    changed = text.clone()
                    changed[:, i] = other[:, i]
                    after = self.fused(changed, picture, training=training, **given)
                    rows = zip(words(output)[:, i], words(after)[:, i], strict=True)
                    seen = f"two words at text position {i}, one output there{where(kind, training)}."
                    require(not any(same(a, b) for a, b in rows), seen)

    @rule(
        "the output at text position i depends on the image and on text up to i; image tokens depend on no text.",
        "attend, convolve and scan over the text from the left only.",
    )
    def test_causal(self) -> None:
        """Another text from i + 1 on changes nothing up to i, be there an image or not."""
        text, image = self.inputs(p=12)
        other = self.inputs(seed=1)[0]
        for kind, (picture, given) in kinds_of_image(image).items():
            for training in (False, True):
                output = self.fused(text, picture, training=training, **given)
                for i in range(-1, text.shape[1] - 1):
                    changed = torch.cat([text[:, : i + 1], other[:, i + 1 :]], dim=1)
                    stop = places(output).start + i + 1
                    leak = self.fused(changed, picture, training=training, **given).tokens[:, :stop]
                    at = f"text position {i} or before it" if i >= 0 else "image positions"
                    seen = f"text from {i + 1} on changes the output at {at}{where(kind, training)}."
                    require(same(leak, output.tokens[:, :stop]), seen)

    @rule(
        "with image=None the result is the text's own positions: (b, l, dim), slice(0, l), text_mask.",
        "begin forward with check_inputs: it makes a missing image one of no tokens.",
    )
    def test_no_image(self) -> None:
        """No image is taken, with and without a text mask."""
        method = self.make()
        text, image = self.inputs()
        text_mask, _ = masks(text, image)
        for mask in (None, text_mask):
            output = fuse(method, text, None, text_mask=mask)
            check_output(output, text)
            require(output.tokens.shape == text.shape, f"{tuple(output.tokens.shape)} for {tuple(text.shape)}.")
            require((output.mask is None) == (mask is None), f"the mask {output.mask} for text_mask {mask}.")

    @rule(
        "a row whose image_mask is all False behaves as with no image, and the other rows as ever.",
        "let the image add exactly nothing where no token is real: biases too; mask its positions in the output.",
    )
    def test_row_without_image(self) -> None:
        """One row of the batch loses its image, be it a grid or not."""
        method = self.make()
        text, image = self.inputs(p=12)
        image_mask = torch.ones(image.shape[:2], dtype=torch.bool)
        image_mask[1] = False
        for grid in (None, (3, 4)):
            rows = list(real(fuse(method, text, image, image_mask=image_mask, image_grid=grid)))
            expected = list(real(fuse(method, text, image, image_grid=grid)))
            expected[1] = list(real(fuse(method, text, None)))[1]
            for row, (a, b) in enumerate(zip(rows, expected, strict=True)):
                kind = "without an image" if row == 1 else "with an image, beside one without,"
                require(same(a, b), f"row {row}, {kind} differs from the same row alone: {compare(a, b)}.")
