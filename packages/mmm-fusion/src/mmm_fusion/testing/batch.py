"""The rules on what must change nothing: padding, and the other rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import compare, fuse, kinds_of_image, masks, real, same, where
from mmm_fusion.testing.rule import require, rule

SIDES = ("right", "left", "between")


class BatchRules(Kit):
    """A test for each rule on batches of rows with lengths of their own."""

    @rule(
        "padding of the text changes nothing at real positions, wherever it stands.",
        "begin forward with check_inputs, attend to real tokens only, and count positions over real tokens.",
    )
    def test_text_padding(self) -> None:
        """Rows of several lengths, padded right, left and between."""
        self.check_text_padding(10.0)

    @rule(
        "padding of the image changes nothing at real positions, wherever it stands.",
        "begin forward with check_inputs, and average over, or attend to, real tokens only.",
    )
    def test_image_padding(self) -> None:
        """Images of several lengths, padded right, left and between."""
        self.check_image_padding(10.0)
        self.check_filler(10.0)

    @rule(
        "padding may hold anything, NaN and infinity too.",
        "begin forward with check_inputs, or masked_fill the padding: NaN times zero is NaN.",
    )
    def test_padding_may_hold_nan(self) -> None:
        """As the two above, with NaN and infinity."""
        for filler in (float("nan"), float("inf")):
            self.check_text_padding(filler)
            self.check_image_padding(filler)
            self.check_filler(filler)

    @rule("rows of a batch do not mix.", "normalise within a row: no batch norm, no sums over b.")
    def test_rows_do_not_mix(self) -> None:
        """Another row 0 changes nothing in the others, in evaluation and in training."""
        text, image = self.inputs(p=12)
        other_text, other_image = self.inputs(p=12, seed=1)
        other_text[1:], other_image[1:] = text[1:], image[1:]
        for training in (False, True):
            for grid in (None, (3, 4)):
                output = self.fused(text, image, training=training, image_grid=grid).tokens
                other = self.fused(other_text, other_image, training=training, image_grid=grid).tokens
                mode = "training" if training else "evaluation"
                require(same(other[1:], output[1:]), f"in {mode}, row 0 changes the other rows.")

    def check_text_padding(self, filler: float) -> None:
        """Each row of a padded batch of texts gives what it gives alone, unpadded, be there an image or not."""
        method = self.make()
        text, image = self.inputs(p=12)
        padded, mask, real_at = spread(text, filler)
        for kind, (picture, given) in kinds_of_image(image).items():
            batch = fuse(method, padded, picture, text_mask=mask, **given)
            for row, (at, seen) in enumerate(zip(real_at, real(batch), strict=True)):
                one = slice(row, row + 1)
                own = {name: value[one] if name == "image_mask" else value for name, value in given.items()}
                (alone,) = real(fuse(method, text[one, : len(at)], None if picture is None else picture[one], **own))
                case = f"text padded {SIDES[row]} with {filler}{where(kind, False)}"
                require(same(seen, alone), f"{case}: {compare(seen, alone)}.")

    def check_image_padding(self, filler: float) -> None:
        """Each row of a padded batch of images gives what it gives alone, unpadded."""
        method = self.make()
        text, image = self.inputs()
        padded, mask, real_at = spread(image, filler)
        batch = fuse(method, text, padded, image_mask=mask)
        for row, (at, seen) in enumerate(zip(real_at, real(batch), strict=True)):
            one = slice(row, row + 1)
            (alone,) = real(fuse(method, text[one], image[one, : len(at)]))
            require(same(seen, alone), f"image padded {SIDES[row]} with {filler}: {compare(seen, alone)}.")

    def check_filler(self, filler: float) -> None:
        """Whatever stands at padding in a grid, the real positions are the same."""
        method = self.make()
        text, image = self.inputs(p=12)
        _, image_mask = masks(text, image)
        outputs = []
        for value in (filler, 0.0):
            padded = image.masked_fill(~image_mask[..., None], value)
            outputs.append(fuse(method, text, padded, image_mask=image_mask, image_grid=(3, 4)))
        for row, (a, b) in enumerate(zip(*map(real, outputs), strict=True)):
            require(same(a, b), f"image padding of {filler} in a grid, row {row}: {compare(a, b)}.")


def spread(x: Tensor, filler: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three rows padded right, left and in between, their mask, and where the real tokens of each stand."""
    size = x.shape[1]
    padded, mask = torch.full_like(x, filler), torch.zeros(x.shape[:2], dtype=torch.bool)
    real_at = [torch.arange(size - 1), torch.arange(2, size), torch.arange(0, size, 2)]
    for row, at in enumerate(real_at):
        padded[row, at], mask[row, at] = x[row, : len(at)], True
    return padded, mask, real_at
