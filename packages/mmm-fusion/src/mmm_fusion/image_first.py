"""`ImageFirst`: the base of methods that read the image by itself first, and then join any number of texts to it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from mmm_fusion.inputs import check_text, given_image, prepend
from mmm_fusion.interface import FusionMethod, FusionOutput, ImageMemory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class ImageFirst(FusionMethod):
    """A fusion method in two parts, of which the first knows the image alone: it is read once for all its texts.

    Define `read`, and of the second part at most one:

    - nothing, where all of the image stands before the text, and the text stays as it is;
    - `join`, and `tokenwise = True`, where each text token is joined by itself;
    - `extend`, where a text token depends on those before it, or on how many they are. It returns what the next ones
      need in the memory's `past`, and `join` follows from it.

    `forward` is made of the two parts. `read` begins with `check_image`, `join` or `extend` with `check_text`.
    """

    def forward(
        self,
        text: Float[Tensor, "b l dim"],
        image: Float[Tensor, "b p image_dim"] | None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        """Fuse to `(b, k + l, dim)`, k tokens of them the prefix that `read` made; see `FusionMethod.forward`."""
        image = given_image(self, text, image, image_mask=image_mask, image_grid=image_grid)
        memory = self.read(image, image_mask=image_mask, image_grid=image_grid)
        tokens = self.join(text, memory, text_mask=text_mask)
        return prepend(memory.prefix, tokens, text_mask=text_mask, image_mask=memory.prefix_mask)

    @abstractmethod
    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Read images; p may be 0. See `FusionMethod.read`."""

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """The text as it is, or where a subclass defines `extend`, what that gives. See `FusionMethod.join`."""
        if type(self).extend is not ImageFirst.extend:
            return self.extend(text, memory, text_mask=text_mask)[0]
        return check_text(self, text, memory=memory, text_mask=text_mask)

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """The text as it is, or where a subclass defines `join`, what follows from that. See `FusionMethod.extend`."""
        if type(self).join is not ImageFirst.join:
            return super().extend(text, memory, text_mask=text_mask)
        return check_text(self, text, memory=memory, text_mask=text_mask), memory
