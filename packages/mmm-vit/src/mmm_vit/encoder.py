"""The Vision Transformer: an image in, a token for each of its patches out (arXiv:2010.11929)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mmm_vit.block import Block
from mmm_vit.config import ViTConfig, pair, round_up
from mmm_vit.errors import ShapeError
from mmm_vit.patch import PatchEmbed
from mmm_vit.positions import resample, sincos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


class Tokens(NamedTuple):
    """All tokens of an image: what `VisionTransformer.encode` returns."""

    patches: Float[Tensor, "b p d"]
    """`(b, p, d)`, the patches in raster order."""
    prefix: Float[Tensor, "b k d"]
    """`(b, k, d)`, the class token if the model has one, then its registers; k may be 0."""


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer encoder, with timm's parameter names.

    It takes images of any size that the patch size divides; positions follow (see `mmm_vit.positions`).
    An image may be of any floating dtype and is computed in that of the weights.

    Attributes:
        config: The `ViTConfig` it was made from.
        dim: Width of a token.
        patch_size: One patch, `(y, x)` in pixels.

    Args:
        config: Sizes and options.
    Source:
        arXiv:2010.11929; initialisation as in timm's `weight_init="jax"`: Xavier's, which suits narrow models too.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.patch_size = pair(config.patch_size)
        self.patch_embed = PatchEmbed(config.channels, config.dim, self.patch_size, bias=config.patch_bias)
        self.cls_token = _learned(int(config.class_token), config.dim)
        self.reg_token = _learned(config.registers, config.dim)
        self.pos_embed = _learned(_positions(config), config.dim)
        self.norm_pre = _norm(config, config.pre_norm)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = _norm(config, config.final_norm)
        self.apply(_initialise)

    def forward(self, image: Float[Tensor, "b c y x"]) -> Float[Tensor, "b p d"]:
        """The tokens of the patches, after the final norm.

        Args:
            image: `(b, c, y, x)`, y and x divisible by `patch_size`.
        Returns:
            `(b, p, d)`, patches in raster order; class token and registers are left out (see `encode`).
        Raises:
            ShapeError: The image's axes do not fit the model.
            TypeError: The image is not floating.
            ValueError: The image is not on the model's device.
        """
        return self.encode(image).patches

    def encode(self, image: Float[Tensor, "b c y x"]) -> Tokens:
        """All tokens after the final norm: those of `forward`, and the class token and registers.

        Args:
            image: As for `forward`.
        Returns:
            `Tokens(patches, prefix)`.
        """
        x = self._embed(image)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Tokens(x[:, self.config.prefix_length :], x[:, : self.config.prefix_length])

    def features(
        self, image: Float[Tensor, "b c y x"], layers: Sequence[int], *, norm: bool = False
    ) -> list[Float[Tensor, "b p d"]]:
        """The tokens of the patches after chosen blocks. Blocks after the last one chosen do not run.

        Args:
            image: As for `forward`.
            layers: Blocks, counted from 0, or from -1 backwards; in any order.
            norm: Whether to apply the final norm to each.
        Returns:
            For each of `layers`, in its order, `(b, p, d)`.
        Raises:
            IndexError: The model has no such block.
        """
        wanted = self._block_numbers(layers)
        x = self._embed(image)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x)
            if i in wanted:
                patches = x[:, self.config.prefix_length :]
                found[i] = self.norm(patches) if norm else patches
        return [found[i] for i in wanted]

    def grid(self, y: int, x: int) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Args:
            y: Height in pixels.
            x: Width in pixels.
        Returns:
            `(h, w)`.
        Raises:
            ShapeError: The patch size does not divide the image.
        """
        py, px = self.patch_size
        fit = round_up((y, x), self.patch_size)
        if fit != (y, x):
            raise ShapeError(
                f"VisionTransformer: `image` must have y and x divisible by patch_size = {self.patch_size}, "
                f"got {(y, x)}. Resize or pad it to {fit}."
            )
        return y // py, x // px

    def _embed(self, image: Float[Tensor, "b c y x"]) -> Float[Tensor, "b l d"]:
        """What the first block gets: patches and, before them, the class token and registers, with their positions."""
        self._check(image)
        grid = self.grid(*image.shape[2:])
        weight = self.patch_embed.proj.weight
        patches = self.patch_embed(image.to(weight.dtype))  # (b, p, d)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        x = patches + self._patch_positions(grid)
        if prefix:
            first = torch.cat(prefix, dim=1)  # (1, k, d)
            if self.pos_embed is not None and self.config.prefix_positions:
                first = first + self.pos_embed[:, : self.config.prefix_length]
            x = torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)  # (b, k + p, d)
        out: Tensor = self.norm_pre(F.dropout(x, self.config.dropout, self.training))
        return out

    def _patch_positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 p d"]:
        if self.pos_embed is None:
            weight = self.patch_embed.proj.weight
            return sincos(grid, self.dim, model_grid=self.config.grid, dtype=weight.dtype, device=weight.device)
        start = self.config.prefix_length if self.config.prefix_positions else 0
        return resample(self.pos_embed[:, start:], self.config.grid, grid)

    def _check(self, image: Tensor) -> None:
        channels, device = self.config.channels, self.patch_embed.proj.weight.device
        if image.ndim != 4:
            raise ShapeError(
                f"VisionTransformer: `image` must be (b, c, y, x), got {tuple(image.shape)}. "
                "For one image (c, y, x), pass image[None]."
            )
        if image.shape[1] != channels:
            raise ShapeError(
                f"VisionTransformer: `image` must be (b, c, y, x) with c = {channels}, "
                f"got {tuple(image.shape)}. If it is (b, y, x, c), pass image.permute(0, 3, 1, 2)."
            )
        if not image.is_floating_point():
            raise TypeError(
                f"VisionTransformer: `image` must be floating, got {image.dtype}. For bytes, pass image.float() / 255."
            )
        if image.device != device:
            raise ValueError(
                f"VisionTransformer: `image` must be on {device} as the weights, got {image.device}. "
                f"Pass image.to('{device}')."
            )

    def _block_numbers(self, layers: Sequence[int]) -> list[int]:
        depth = self.config.depth
        if any(not -depth <= layer < depth for layer in layers):
            raise IndexError(
                f"VisionTransformer.features: `layers` must be from {-depth} to {depth - 1} = depth - 1, "
                f"got {list(layers)}. The first block is 0, the last -1."
            )
        return [layer % depth for layer in layers]


def _norm(config: ViTConfig, there: bool) -> nn.Module:
    return nn.LayerNorm(config.dim, eps=config.norm_eps) if there else nn.Identity()


def _positions(config: ViTConfig) -> int:
    """Number of learned positions."""
    if config.positions != "learned":
        return 0
    h, w = config.grid
    return h * w + (config.prefix_length if config.prefix_positions else 0)


def _learned(count: int, dim: int) -> nn.Parameter | None:
    """Learned tokens or positions `(1, count, dim)`, kept out of weight decay; None for none."""
    if count == 0:
        return None
    tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))
    tokens._no_weight_decay = True  # type: ignore[attr-defined]
    return tokens


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
