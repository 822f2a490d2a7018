"""`ldp_v2`: the image tokens, averaged by 2 x 2, stand before the text.

Chu et al., MobileVLM V2: Faster and Stronger Baseline for Vision Language Model, arXiv:2402.03766: the projector LDPv2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.grid_projector import GridProjector, convolve, window_sum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class LDPv2(GridProjector):
    """Image tokens through MobileVLM V2's projector, a quarter as many, then the text.

    Two pointwise layers, average pooling, and one depthwise convolution with a skip, which tells each token where it
    stands. Without `image_grid` the image tokens are one line, and half as many come out.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the image tokens that stand before the text.
    Source:
        arXiv:2402.03766, with the positional encoding generator of arXiv:2102.10882.
    """

    name = "ldp_v2"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def downsample(
        self, x: Float[Tensor, "b h w dim"], real: Bool[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b h/2 w/2 dim"], Bool[Tensor, "b h/2 w/2"]]:
        """Average the real tokens of each window, then add positions. See `GridProjector.downsample`."""
        weight = real[..., None].to(x.dtype)
        count = window_sum(weight)
        x = window_sum(x * weight) / count.clamp(min=1)
        real = count[..., 0] > 0
        return x + convolve(self.position, x, real), real
