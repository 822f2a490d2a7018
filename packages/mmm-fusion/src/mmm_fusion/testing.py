"""`FusionContract`: the rules of the contract as tests, for any fusion method.

Subclass it in a test file, and pytest runs one test for each rule:

    class TestFilm(FusionContract):
        method = Film

It needs no pytest itself. All parameters are moved away from their initial values first, so that a gate which is
zero at the start does not make a method seem to ignore the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmm_fusion.interface import FusionMethod
from mmm_fusion.probes import (
    ContractViolation,
    check_output,
    compare,
    default_dtype,
    fuse,
    leaves,
    masks,
    noise,
    places,
    real,
    require,
    rule,
    same,
)
from mmm_fusion.rules import check_method

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["ContractViolation", "FusionContract"]


class FusionContract:
    """One test method for each rule of the contract.

    Set `method` in a subclass. The sizes may be set too, where a method can work only with some.

    Attributes:
        method: The class under test.
        options: Its own options.
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads.
    """

    method: ClassVar[type[FusionMethod]]
    options: ClassVar[dict[str, Any]] = {}
    dim: ClassVar[int] = 24
    image_dim: ClassVar[int] = 20
    heads: ClassVar[int] = 4

    # The form of a method and of what it returns.

    @rule(
        "a subclass of FusionMethod with a name, the constructor (dim, image_dim, *, heads, dropout, **options with "
        "defaults) and the contract's forward.",
        "write the two signatures as in the documentation of FusionMethod.",
    )
    def test_signatures(self) -> None:
        """The class can be registered, and made with any heads and dropout."""
        check_method(self.method)
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
        """Fewer, as many and more image tokens than text tokens, down to one; with their grid too."""
        method = self.make()
        for l, grid in ((5, (3, 4)), (6, (2, 3)), (7, (2, 2)), (1, (2, 3)), (4, (1, 1))):
            text, image = self.inputs(l=l, p=grid[0] * grid[1])
            check_output(fuse(method, text, image), text)
            check_output(fuse(method, text, image, image_grid=grid), text)

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

    # What the output depends on.

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
            for image_mask in (None, everything):
                before = real(fuse(method, text, image, image_mask=image_mask))
                after = real(fuse(method, text, other, image_mask=image_mask))
                changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
                require(all(changed), f"two images, one output, for l = {l} and p = {p}.")

    @rule(
        "the output at text position i depends on the image and on text up to i; image tokens depend on no text.",
        "attend, convolve and scan over the text from the left only.",
    )
    def test_causal(self) -> None:
        """Another text from i + 1 on changes nothing up to i."""
        method = self.make()
        text, image = self.inputs()
        other = self.inputs(seed=1)[0]
        output = fuse(method, text, image)
        for i in range(-1, text.shape[1] - 1):
            changed = torch.cat([text[:, : i + 1], other[:, i + 1 :]], dim=1)
            stop = places(output).start + i + 1
            leak = fuse(method, changed, image).tokens[:, :stop]
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
        """One row of the batch loses its image."""
        method = self.make()
        text, image = self.inputs()
        image_mask = torch.ones(image.shape[:2], dtype=torch.bool)
        image_mask[1] = False
        rows = list(real(fuse(method, text, image, image_mask=image_mask)))
        expected = list(real(fuse(method, text, image)))
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

    @rule(
        "padding may hold anything, NaN and infinity too.",
        "begin forward with check_inputs, or masked_fill the padding: NaN times zero is NaN.",
    )
    def test_padding_may_hold_nan(self) -> None:
        """As the two above, with NaN and infinity."""
        for filler in (float("nan"), float("inf")):
            self.check_padding("text", filler)
            self.check_padding("image", filler)

    @rule("rows of a batch do not mix.", "normalise within a row: no batch norm, no sums over b.")
    def test_rows_do_not_mix(self) -> None:
        """Another row 0 changes nothing in the others, in evaluation and in training."""
        text, image = self.inputs()
        for training in (False, True):
            method = self.make().train(training)
            output = fuse(method, text, image).tokens
            other_text, other_image = self.inputs(seed=1)
            other_text[1:], other_image[1:] = text[1:], image[1:]
            other = fuse(method, other_text, other_image).tokens
            mode = "training" if training else "evaluation"
            require(same(other[1:], output[1:]), f"in {mode}, row 0 changes the other rows.")

    # What a module must be to be trained, saved and compiled.

    @rule(
        "every tensor that is trained is registered.",
        "assign parameters and modules to attributes, or keep them in nn.ParameterList and nn.ModuleList.",
    )
    def test_parameters_are_registered(self) -> None:
        """The graph of the output ends in parameters of the module alone."""
        method = self.make()
        registered = {id(parameter) for parameter in method.parameters()}
        for leaf in leaves(method(*self.inputs()).tokens):
            require(id(leaf) in registered, f"an unregistered tensor of shape {tuple(leaf.shape)} in the graph.")

    @rule("every parameter gets a gradient.", "use it in forward, do not detach or freeze it, or delete it.")
    def test_parameters_get_gradients(self) -> None:
        """No parameter is left without a gradient, or with one of zeros."""
        method = self.make().train()
        tokens = method(*self.inputs()).tokens
        if tokens.requires_grad:
            (tokens * noise(tokens.shape, seed=2)).sum().backward()
        for name, parameter in method.named_parameters():
            require(parameter.grad is not None and bool(parameter.grad.any()), f"no gradient of `{name}`.")

    @rule(
        "the state dict holds all that the output depends on.",
        "register parameters and buffers; make nothing at random that is not registered.",
    )
    def test_state_dict(self) -> None:
        """Two methods made apart give one output, once the state of the first is loaded into the second."""
        one, two = self.make(), self.make(seed=1)
        two.load_state_dict(one.state_dict())
        text, image = self.inputs()
        a, b = fuse(one, text, image).tokens, fuse(two, text, image).tokens
        require(same(a, b), f"after load_state_dict the outputs differ: {compare(a, b)}.")

    @rule("evaluation is deterministic.", "call dropout and random numbers in training only.")
    def test_evaluation_is_deterministic(self) -> None:
        """One call made twice gives the same, whatever the global generator holds."""
        method = self.make(dropout=0.5)
        text, image = self.inputs()
        outputs = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                outputs.append(fuse(method, text, image).tokens)
        require(torch.equal(*outputs), f"the same call gave two outputs: {compare(*outputs)}.")

    @rule(
        "tokens have the dtype of the text and of the weights.",
        "make masks and constants in the dtype of the text: text.new_zeros, x.to(text.dtype).",
    )
    def test_dtype(self) -> None:
        """float32, float64 and bfloat16 come out as they go in."""
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            method = self.make().to(dtype)
            text, image = (x.to(dtype) for x in self.inputs())
            text_mask, image_mask = masks(text, image)
            for output in (
                fuse(method, text, image),
                fuse(method, text, image, text_mask=text_mask, image_mask=image_mask),
            ):
                require(output.tokens.dtype == dtype, f"{output.tokens.dtype} for a text in {dtype}.")
                require(bool(output.tokens.isfinite().all()), f"values in {dtype} that are not finite.")

    @rule(
        "works under torch.compile(fullgraph=True), forward and backward.",
        "let no Python branch depend on the values of a tensor.",
    )
    def test_compiles(self) -> None:
        """The compiled method gives what the method gives, for several lengths and with masks."""
        method = self.make()
        torch.compiler.reset()  # else many methods in one process reach the compiler's limit
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        for l, p, padded in ((5, 7, False), (6, 4, False), (6, 4, True)):
            text, image = self.inputs(l=l, p=p)
            given = dict(zip(("text_mask", "image_mask"), masks(text, image), strict=True)) if padded else {}
            output, expected = compiled(text, image, **given), fuse(method, text, image, **given)
            output.tokens.sum().backward()
            require(output.text == expected.text, f"`text` {output.text} in place of {expected.text}.")
            require(same(output.tokens, expected.tokens), f"{compare(output.tokens, expected.tokens)}.")

    # What the tests are made of.

    def make(
        self, *, image_dim: int | None = None, heads: int | None = None, dropout: float = 0.0, seed: int = 0
    ) -> FusionMethod:
        """The method in float64 and evaluation, with every parameter moved by 0.1 to 0.3, up or down."""
        with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
            torch.manual_seed(seed)
            method = self.method(
                self.dim, image_dim or self.image_dim, heads=heads or self.heads, dropout=dropout, **self.options
            )
            with torch.no_grad():
                for parameter in method.parameters():
                    size = 0.1 + 0.2 * torch.rand_like(parameter)
                    parameter.add_(size * torch.randn_like(parameter).sign())
        return method.double().eval()

    def inputs(
        self, *, l: int = 5, p: int = 7, image_dim: int | None = None, seed: int = 0
    ) -> tuple[Float[Tensor, "b l dim"], Float[Tensor, "b p image_dim"]]:
        """Text and image of three rows, in float64."""
        return noise((3, l, self.dim), seed), noise((3, p, image_dim or self.image_dim), seed + 1000)

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
