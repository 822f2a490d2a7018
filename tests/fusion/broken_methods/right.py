"""Methods that keep the contract, to be broken by others, and the register of those."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mmm_fusion import (
    FusionMethod,
    FusionOutput,
    ImageFirst,
    ImageMemory,
    check_image,
    check_inputs,
    check_text,
    prepend,
)
from mmm_fusion.masks import count_on
from mmm_fusion.methods.add import shares
from mmm_fusion.testing import FusionContract, rules_of

RULES = [name.removeprefix("test_") for name in rules_of(FusionContract)]
PADDING = ["text_padding", "image_padding", "padding_may_hold_nan"]
PARTS = ["read_then_join", "many_texts_of_one_image", "text_of_no_tokens"]
PIECES = ["text_in_pieces", "join_goes_on"]
FUTURE = ["causal", "longer_text", "text_in_pieces", "inputs_get_gradients"]
WITH_A_GRID = [
    *(
        "lengths_are_free",
        "grid_must_match",
        "image_matters",
        "causal",
        "longer_text",
        "row_without_image",
        "image_padding",
    ),
    *("padding_may_hold_nan", "rows_do_not_mix", "parameters_are_registered"),
    *("parameters_get_gradients", "state_dict", "evaluation_is_deterministic", "inputs_are_left_alone", "autocast"),
    *(
        "text_matters",
        "text_padding",
        "start_can_learn",
        "inputs_get_gradients",
        "copies",
        "strides",
        "device",
        "dtype",
    ),
]
WITHOUT_AN_IMAGE = [
    *("text_matters", "causal", "longer_text", "row_without_image", "text_padding", "padding_may_hold_nan"),
    *("parameters_get_gradients", "start_can_learn", "inputs_get_gradients", "parameters_are_registered"),
    *("state_dict", "copies", "device", "dtype"),
]
BROKEN: dict[type[FusionMethod], list[str]] = {}


def breaks(*rules: str) -> Callable[[type[FusionMethod]], type[FusionMethod]]:
    """Enter a class under the rules that reject it."""

    def enter(method: type[FusionMethod]) -> type[FusionMethod]:
        BROKEN[method] = list(rules)
        return method

    return enter


def shared_out(text: Tensor, image: Tensor, *, text_mask: Tensor | None, image_mask: Tensor | None) -> Tensor:
    """For each word of a text its share of the image, as `add` has it."""
    number, _ = count_on(text, text_mask, None)
    return shares(number, image, image_mask)


class Right(FusionMethod):
    """As `add`. The broken methods replace `build`, `fuse` or the whole of `forward`."""

    name = "right"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.image_dim, self.heads, self.rate = dim, image_dim, heads, dropout
        self.proj = nn.Linear(image_dim, dim)
        self.build()

    def build(self) -> None: ...

    def forward(
        self,
        text: Tensor,
        image: Tensor | None,
        *,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        text, image = check_inputs(self, text, image, **masks, image_grid=image_grid)
        return self.fuse(text, image, **masks)

    def fuse(self, text: Tensor, image: Tensor, **masks: Tensor | None) -> FusionOutput:
        share = shared_out(text, self.proj(image), **masks)
        return FusionOutput(text + share, slice(0, text.shape[1]), masks["text_mask"])


class RightConcat(Right):
    """As `concat`."""

    def fuse(self, text: Tensor, image: Tensor, **masks: Tensor | None) -> FusionOutput:
        return prepend(self.proj(image), text, **masks)


class RightOnAGrid(Right):
    """As `add`, and where the image is a grid, convolved before."""

    def build(self) -> None:
        self.conv = nn.Conv2d(self.image_dim, self.image_dim, 3, padding=1, groups=self.image_dim)

    def forward(self, text, image, *, image_mask=None, image_grid=None, text_mask=None):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        text, image = check_inputs(self, text, image, **masks, image_grid=image_grid)
        if image_grid is not None:
            image = self.on_grid(image.unflatten(1, image_grid).movedim(3, 1)).flatten(2).mT
        return self.fuse(text, image, **masks)

    def on_grid(self, image: Tensor) -> Tensor:
        """The image as `(b, image_dim, h, w)`."""
        return image + self.conv(image)


class RightInParts(ImageFirst):
    """As `add`, in two parts."""

    name = "right"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)

    def read(self, image, *, image_mask=None, image_grid=None):
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        return ImageMemory(image.new_zeros(len(image), 0, self.dim), context=(self.proj(image), image_mask))

    def extend(self, text, memory, *, text_mask=None):
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        number, so_far = count_on(text, text_mask, *(memory.past or (None,)))
        return text + shares(number, *memory.context), memory._replace(past=(so_far,))
