"""From pixels to tokens: each patch, flattened, times one matrix (arXiv:2010.11929 §3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_vit.linear import linear

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token.

    The weight is that of a convolution whose stride is its kernel, so that checkpoints fit. It is applied as
    one matrix product: patches do not overlap, so it is the same, trains faster and leaves tokens contiguous.

    Args:
        channels: Channels of an image.
        dim: Width of a token.
        patch_size: One patch, `(y, x)` in pixels.
        bias: Whether the projection has a bias.
    """

    def __init__(self, channels: int, dim: int, patch_size: tuple[int, int], *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, image: Float[Tensor, "b c y x"]) -> Float[Tensor, "b p d"]:
        """Embed the patches.

        Args:
            image: `(b, c, y, x)`, y and x divisible by `patch_size`.
        Returns:
            `(b, p, d)`, patches in raster order.
        """
        _, _, y, x = image.shape
        py, px = self.patch_size
        patches = image.unflatten(3, (x // px, px)).unflatten(2, (y // py, py))  # (b, c, h, py, w, px)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (b, p, c·py·px)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # (b, p, d)
