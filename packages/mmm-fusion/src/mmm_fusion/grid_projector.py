"""`GridProjector`: the base of methods that convolve the image to fewer tokens, and put those before the text."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from mmm_fusion.image_first import ImageFirst
from mmm_fusion.inputs import check_arguments, check_image
from mmm_fusion.interface import ImageMemory

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class GridProjector(ImageFirst):
    """Image tokens, projected one by one, then as a grid made fewer by two in height and width; then the text.

    Define `downsample`. Without `image_grid` the real image tokens, in order, are one line, and padding is passed over.
    With it a masked token is a hole, which counts as outside of the picture.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the image tokens that stand before the text.
    """

    tokenwise = True

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Sequential(nn.Linear(image_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Project the image tokens and make them fewer: ceil(h / 2) * ceil(w / 2). See `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        image = self.proj(image)  # (b, p, dim)
        if image.shape[1] == 0:  # a convolution takes no empty picture
            return ImageMemory(image, image_mask)
        x, real = as_picture(image, image_mask=image_mask, image_grid=image_grid)
        x, real = self.downsample(x, real)
        return ImageMemory(self.dropout(x.flatten(1, 2)), None if image_mask is None else real.flatten(1))

    @abstractmethod
    def downsample(
        self, x: Float[Tensor, "b h w dim"], real: Bool[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b h/2 w/2 dim"], Bool[Tensor, "b h/2 w/2"]]:
        """Make one token of each window of 2 x 2, and say which of them are real: those with a real one in the window.

        Args:
            x: The projected tokens. At holes they are finite, and mean nothing.
            real: False for a hole.
        Returns:
            The same of half the height and width, rounded up.
        """


def convolve(
    conv: nn.Conv2d, x: Float[Tensor, "b h w dim"], real: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h/s w/s dim"]:
    """Convolve a picture that has its channels last, with zeros in its holes."""
    filtered: Tensor = conv(x.masked_fill(~real[..., None], 0).movedim(3, 1))
    return filtered.movedim(1, 3)


def as_picture(
    image: Float[Tensor, "b p dim"], *, image_mask: Bool[Tensor, "b p"] | None, image_grid: tuple[int, int] | None
) -> tuple[Float[Tensor, "b h w dim"], Bool[Tensor, "b h w"]]:
    """The tokens at their places, and which of them are real; without a grid they are a line, the real ones first."""
    if image_mask is None:
        image_mask = image.new_ones(image.shape[:2]).bool()
    elif image_grid is None:
        order = image_mask.argsort(dim=1, descending=True, stable=True)  # (b, p)
        image, image_mask = image.take_along_dim(order[..., None], 1), image_mask.take_along_dim(order, 1)
    image_grid = image_grid or (1, image.shape[1])
    return image.unflatten(1, image_grid), image_mask.unflatten(1, image_grid)


def window_sum(x: Float[Tensor, "b h w dim"]) -> Float[Tensor, "b h/2 w/2 dim"]:
    """The sum of each window of 2 x 2; at an odd edge, of the part of it that is there."""
    return F.avg_pool2d(x.movedim(3, 1), 2, ceil_mode=True, divisor_override=1).movedim(1, 3)
