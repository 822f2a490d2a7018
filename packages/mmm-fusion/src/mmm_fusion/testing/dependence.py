"""The rules on what the output depends on: the image, the text so far, and nothing else."""

from __future__ import annotations

import torch

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import check_output, compare, fuse, masks, places, real, require, rule, same


class DependenceRules(Kit):
    """A test for each rule on dependence."""

    @rule(
        "the image changes the text, or stands before it in the sequence.",
        "use the image in every call, whatever l and p are.",
    )
    def test_image_matters(self) -> None:
        """Another image gives other real tokens, in every row."""
        method = self.make()
        for l, p in ((5, 12), (6, 6), (7, 4)):
            text, image = self.inputs(l=l, p=p)
            other = self.inputs(l=l, p=p, seed=1)[1]
            everything = torch.ones(image.shape[:2], dtype=torch.bool)
            for given in ({}, {"image_mask": everything}, {"image_grid": (2, p // 2)}):
                before, after = (real(fuse(method, text, each, **given)) for each in (image, other))
                changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
                where = f"l = {l}, p = {p}{''.join(f' and {name}' for name in given)}"
                require(all(changed), f"two images, one output, for {where}.")

    @rule(
        "the output at text position i depends on the image and on text up to i; image tokens depend on no text.",
        "attend, convolve and scan over the text from the left only.",
    )
    def test_causal(self) -> None:
        """Another text from i + 1 on changes nothing up to i."""
        method = self.make()
        for p, given in ((7, {}), (12, {"image_grid": (3, 4)})):
            text, image = self.inputs(p=p)
            other = self.inputs(seed=1)[0]
            output = fuse(method, text, image, **given)
            for i in range(-1, text.shape[1] - 1):
                changed = torch.cat([text[:, : i + 1], other[:, i + 1 :]], dim=1)
                stop = places(output).start + i + 1
                leak = fuse(method, changed, image, **given).tokens[:, :stop]
                where = f"text position {i} or before it" if i >= 0 else "image positions"
                require(same(leak, output.tokens[:, :stop]), f"text from {i + 1} on changes the output at {where}.")

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

    @rule(
        "padding of the text changes nothing at real positions, wherever it stands.",
        "begin forward with check_inputs, attend to real tokens only, and count positions over real tokens.",
    )
    def test_text_padding(self) -> None:
        """Rows of several lengths, padded right, left and between."""
        self.check_padding("text", filler=10.0)

    @rule(
        "padding of the image changes nothing at real positions, wherever it stands.",
        "begin forward with check_inputs, and average over, or attend to, real tokens only.",
    )
    def test_image_padding(self) -> None:
        """Images of several lengths, padded right, left and between."""
        self.check_padding("image", filler=10.0)
        self.check_filler(10.0)

    @rule(
        "padding may hold anything, NaN and infinity too.",
        "begin forward with check_inputs, or masked_fill the padding: NaN times zero is NaN.",
    )
    def test_padding_may_hold_nan(self) -> None:
        """As the two above, with NaN and infinity."""
        for filler in (float("nan"), float("inf")):
            self.check_padding("text", filler)
            self.check_padding("image", filler)
            self.check_filler(filler)

    @rule("rows of a batch do not mix.", "normalise within a row: no batch norm, no sums over b.")
    def test_rows_do_not_mix(self) -> None:
        """Another row 0 changes nothing in the others, in evaluation and in training."""
        text, image = self.inputs(p=12)
        other_text, other_image = self.inputs(p=12, seed=1)
        other_text[1:], other_image[1:] = text[1:], image[1:]
        for training in (False, True):
            for grid in (None, (3, 4)):
                method = self.make().train(training)
                output = fuse(method, text, image, image_grid=grid).tokens
                other = fuse(method, other_text, other_image, image_grid=grid).tokens
                mode = "training" if training else "evaluation"
                require(same(other[1:], output[1:]), f"in {mode}, row 0 changes the other rows.")

    def check_padding(self, which: str, filler: float) -> None:
        """Each row of a padded batch gives what it gives alone, unpadded."""
        method = self.make()
        text, image = self.inputs()
        inputs = {"text": text, "image": image}
        x, size = inputs[which], inputs[which].shape[1]
        padded, mask = torch.full_like(x, filler), torch.zeros(x.shape[:2], dtype=torch.bool)
        # Right, left, and in between: each row with a length of its own.
        spread = [torch.arange(size - 1), torch.arange(2, size), torch.arange(0, size, 2)]
        for row, at in enumerate(spread):
            padded[row, at], mask[row, at] = x[row, : len(at)], True
        batch = fuse(method, **{**inputs, which: padded}, **{f"{which}_mask": mask})
        for row, (at, seen) in enumerate(zip(spread, real(batch), strict=True)):
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            one[which] = one[which][:, : len(at)]
            (alone,) = real(fuse(method, **one))
            where = ("right", "left", "between")[row]
            require(same(seen, alone), f"{which} padded {where} with {filler}: {compare(seen, alone)}.")

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
