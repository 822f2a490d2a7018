"""`mobilevlm`: a quarter as many image tokens, made by light convolutions, stand before the text.

Chu et al., MobileVLM: A Fast, Strong and Open Vision Language Assistant for Mobile Devices, arXiv:2312.16886: the
lightweight downsample projector (LDP), by the paper's equations. Its released code has hard swish and
squeeze-and-excitation in the blocks besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_fusion.grid_projector import GridProjector, convolve, window_sum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class MobileVLM(GridProjector):
    """Image tokens through MobileVLM's projector, a quarter as many, then the text.

    Two pointwise layers, then two depthwise convolutions, each with layer norms and a pointwise layer: one with a
    residual, and one of stride 2. Without `image_grid` the image tokens are one line, and half as many come out.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the image tokens that stand before the text.
    Source:
        arXiv:2312.16886, its equations; the released code has more in the blocks.
    """

    name = "mobilevlm"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)
        self.mix = ConvBlock(dim, stride=1)
        self.shrink = ConvBlock(dim, stride=2)
        # At the start the residual branch is closed and the other convolution takes means: what tells tokens apart is
        # not buried under two random filters, which takes long to undo.
        nn.init.zeros_(self.mix.norm2.weight)
        nn.init.constant_(self.shrink.depthwise.weight, 1 / 9)

    def downsample(
        self, x: Float[Tensor, "b h w dim"], real: Bool[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b h/2 w/2 dim"], Bool[Tensor, "b h/2 w/2"]]:
        """Mix each token with those around it, then keep every second of both axes. See `GridProjector.downsample`."""
        x = x + self.mix(x, real)
        count = window_sum(real[..., None].to(x.dtype))
        return self.shrink(x, real), count[..., 0] > 0


class ConvBlock(nn.Module):
    """Depthwise convolution and pointwise layer, each with a layer norm after it."""

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)
        self.norm1 = nn.LayerNorm(dim)
        self.pointwise = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b h w dim"], real: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h/s w/s dim"]:
        """The branch alone; a residual is the caller's."""
        return self.norm2(self.pointwise(self.norm1(convolve(self.depthwise, x, real))))  # type: ignore[no-any-return]
