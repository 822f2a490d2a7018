"""`ImageFirst`: the base of methods that read the image by itself first, and then join any number of texts to it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from mmm_fusion.inputs import check_inputs, check_text, prepend
from mmm_fusion.interface import FusionMethod, FusionOutput, ImageMemory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class ImageFirst(FusionMethod):
    """A fusion method in two parts, of which the first knows the image alone.

    Define `read`, and `join` where the text is more than appended to what `read` puts before it; `forward` is made of
    the two. An image is then read once, however many texts are about it. `read` begins with `check_image`, `join` with
    `check_text`.
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
        text, image = check_inputs(self, text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
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
        """The text as it is: all of the image stands before it. See `FusionMethod.join`."""
        return check_text(self, text, memory=memory, text_mask=text_mask)
