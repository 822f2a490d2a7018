"""What a Vision Transformer is made of, in one frozen value.

A config is plain data: `dataclasses.asdict` and JSON store it, and `ViTConfig(**fields)` reads it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Positions = Literal["learned", "sincos"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The sizes and options of a `VisionTransformer`.

    Sizes in pixels are one number or `(y, x)`, and are kept as a tuple.

    Args:
        image_size: Image that the positions are made for. The model also takes any other size.
        patch_size: One patch. It divides the image.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block. They divide `dim`.
        channels: Channels of an image.
        mlp_ratio: Hidden width of a block's feed-forward part, as a multiple of `dim`.
        activation: Of the feed-forward part: `"gelu"`, exact; `"gelu_tanh"`, its approximation by a hyperbolic tangent
            (SigLIP); or `"quick_gelu"`, by a sigmoid: x · σ(1.702 x) (CLIP).
        qkv_bias: Whether queries, keys and values have a bias.
        patch_bias: Whether the projection of the patches has a bias. CLIP's has none.
        class_token: Whether a learned token stands before the patches.
        registers: Number of further learned tokens, after the class token (arXiv:2309.16588).
        positions: `"learned"`, or `"sincos"`, which has no parameters and needs `dim` divisible by 4.
        prefix_positions: Whether learned positions have an entry for each class and register token, before
            those of the patches. False is timm's `no_embed_class=True`. Sin-cos positions have none.
        layer_scale: Start of the learned scale of each branch (arXiv:2103.17239), or None for no such scale.
        pre_norm: Whether a norm precedes the first block, after the positions (CLIP).
        final_norm: Whether a norm follows the last block. False is timm's `global_pool="avg"`.
        dropout: Rate after the positions and after every dense layer but the one of queries, keys and values.
        drop_path: Rate at which the last block's branches are dropped; from 0 at the first, it grows linearly
            (stochastic depth, arXiv:1603.09382).
        norm_eps: Epsilon of every norm.
    Raises:
        ValueError: A value is out of its range, or two disagree.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    dim: int
    depth: int
    heads: int
    channels: int = 3
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    qkv_bias: bool = True
    patch_bias: bool = True
    class_token: bool = False
    registers: int = 0
    positions: Positions = "learned"
    prefix_positions: bool = True
    layer_scale: float | None = None
    pre_norm: bool = False
    final_norm: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, pair(getattr(self, name), name))
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        for name, least in (("dim", 1), ("depth", 1), ("heads", 1), ("channels", 1), ("registers", 0)):
            value = getattr(self, name)
            ok = isinstance(value, int) and value >= least
            _expect(ok, f"`{name}` must be a whole number from {least} up, got {value}.")
        for name in ("mlp_ratio", "norm_eps"):
            _expect(getattr(self, name) > 0, f"`{name}` must be above 0, got {getattr(self, name)}.")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            _expect(0 <= rate < 1, f"`{name}` must be in [0, 1), got {rate}.")
        for name, kinds in (("activation", Activation), ("positions", Positions)):
            known, value = get_args(kinds), getattr(self, name)
            _expect(value in known, f"`{name}` must be one of {known}, got {value!r}.")

    def _check_together(self) -> None:
        dim, heads, size, patch = self.dim, self.heads, pair(self.image_size), pair(self.patch_size)
        _expect(
            dim % heads == 0,
            f"`dim` must be divisible by heads = {heads}, got {dim}. Use {-(-dim // heads) * heads}.",
        )
        _expect(
            self.positions != "sincos" or dim % 4 == 0,
            f"`dim` must be divisible by 4 for sin-cos positions, got {dim}. Use positions='learned'.",
        )
        fit = round_up(size, patch)
        _expect(fit == size, f"`image_size` must be divisible by patch_size = {patch}, got {size}. Use {fit}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        (y, x), (py, px) = pair(self.image_size), pair(self.patch_size)
        return y // py, x // px

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return self.class_token + self.registers


def pair(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """A size in pixels as `(y, x)`.

    Args:
        size: One number for both axes, or two; a list, as JSON has it, will do.
        name: What the size is called in an error.
    Raises:
        ValueError: The size is neither, or not positive.
    """
    both = (size, size) if isinstance(size, int) else tuple(size)
    _expect(
        len(both) == 2 and all(isinstance(side, int) and side > 0 for side in both),
        f"`{name}` must be a positive whole number or (y, x), got {size}.",
    )
    return both[0], both[1]


def round_up(size: tuple[int, int], step: tuple[int, int]) -> tuple[int, int]:
    """The smallest multiple of `step` that holds `size` and is not empty, axis by axis."""
    y, x = (max(-(-side // each), 1) * each for side, each in zip(size, step, strict=True))
    return y, x


def _expect(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(f"ViTConfig: {text}")
