"""The rules on the form of a method, of what it takes and of what it returns."""

from __future__ import annotations

import torch

from mmm_fusion.loading import built_in
from mmm_fusion.rules import check_method
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import check_output, fuse, masks, places
from mmm_fusion.testing.rule import require, rule

LENGTHS = (
    *((5, (3, 4)), (5, (4, 3)), (6, (2, 3)), (7, (2, 2)), (3, (1, 5)), (1, (5, 1)), (4, (1, 1))),
    (70, (16, 16)),  # a picture of 224 x 224 in patches of 14, and more words than the small tables have
)
"""Numbers of words, and grids."""


class FormRules(Kit):
    """A test for each rule on form."""

    @rule(
        "a subclass of FusionMethod with a name, the constructor (dim, image_dim, *, heads, dropout, **options with "
        "defaults) and the contract's forward.",
        "write the two signatures as in the documentation of FusionMethod, and give the class a name of its own.",
    )
    def test_signatures(self) -> None:
        """The class can be registered, and made with any heads and dropout."""
        check_method(self.method)
        taken = [method.name for method in built_in() if method is not self.method]
        require(self.method.name not in taken, f"the name `{self.method.name}`, which a built-in method has.")
        for heads in {1, self.heads}:
            for dropout in (0.0, 0.1):
                self.make(heads=heads, dropout=dropout)

    @rule(
        "forward returns FusionOutput(tokens (b, m, dim), text, mask), `text` a slice of l positions.",
        "return FusionOutput(tokens, slice(m - l, m), mask).",
    )
    def test_output(self) -> None:
        """The output has the types and shapes of the contract."""
        text, image = self.inputs(l=6, p=6)
        check_output(fuse(self.make(), text, image), text)

    @rule(
        "`mask` is None where no mask was given; else it is (b, m) bool, and at the text positions it is text_mask.",
        "return text_mask, or with image tokens in the sequence their masks side by side: see mmm_fusion.prepend.",
    )
    def test_mask(self) -> None:
        """The mask of the output follows the masks of the inputs."""
        method = self.make()
        text, image = self.inputs()
        text_mask, image_mask = masks(text, image)
        output = fuse(method, text, image)
        require(output.mask is None, "a mask, though none was given.")
        output = fuse(method, text, image, image_mask=image_mask)
        require(output.mask is None or bool(output.mask[:, output.text].all()), "image_mask masks the text.")
        output = fuse(method, text, image, text_mask=text_mask, image_mask=image_mask)
        check_output(output, text)
        require(output.mask is not None and torch.equal(output.mask[:, output.text], text_mask), f"{output.mask}.")

    @rule("l and p are free of each other.", "pool the image tokens to l, or keep them in the sequence.")
    def test_lengths_are_free(self) -> None:
        """Fewer, as many and more image tokens than text tokens, from one to 256; on grids of several shapes too."""
        method = self.make()
        for l, grid in LENGTHS:
            text, image = self.inputs(l=l, p=grid[0] * grid[1])
            check_output(fuse(method, text, image), text)
            check_output(fuse(method, text, image, image_grid=grid), text)

    @rule(
        "an image_grid (h, w) with h * w other than p is refused, by InputError or another ValueError.",
        "begin forward with check_inputs, and pass it image_grid.",
    )
    def test_grid_must_match(self) -> None:
        """Grids of more and of fewer cells than there are image tokens."""
        method = self.make()
        text, image = self.inputs(p=12)
        for grid in ((3, 5), (2, 5), (12, 2)):
            try:
                fuse(method, text, image, image_grid=grid)
            except ValueError:
                continue
            require(False, f"12 image tokens are taken for a grid of {grid[0]} x {grid[1]}.")

    @rule("image_dim and dim are free of each other.", "project the image tokens from image_dim to dim.")
    def test_widths_are_free(self) -> None:
        """Image tokens narrower than, as wide as and wider than the text."""
        for image_dim in (self.dim // 2, self.dim, 2 * self.dim):
            text, image = self.inputs(image_dim=image_dim)
            check_output(fuse(self.make(image_dim=image_dim), text, image), text)

    @rule(
        "image tokens come before the text, so that a causal backbone lets the text see the image.",
        "return the text in the last l positions.",
    )
    def test_image_before_text(self) -> None:
        """The text stands last."""
        text, image = self.inputs()
        output = fuse(self.make(), text, image)
        m = output.tokens.shape[1]
        require(places(output).stop == m, f"the text at {output.text} of {m} positions.")
