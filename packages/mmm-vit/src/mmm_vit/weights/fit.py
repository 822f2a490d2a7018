"""What every checkpoint goes through once its names are timm's: positions fitted to the config, all else compared."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from mmm_vit.encoder import VisionTransformer
from mmm_vit.positions import resample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Float
    from torch import Tensor

    from mmm_vit.config import ViTConfig

Grid = tuple[int, int]

FIELDS = (  # what in a config decides whether there is such a tensor, and its shape
    (r"cls_token", ("class_token",)),
    (r"reg_token", ("registers",)),
    (r"pos_embed", ("positions",)),
    (r"patch_embed\.proj\.weight", ("patch_size", "channels", "dim")),
    (r"patch_embed\.proj\.bias", ("patch_bias", "dim")),
    (r"norm_pre\.\w+", ("pre_norm",)),
    (r"norm\.\w+", ("final_norm",)),
    (r"blocks\.\d+\.attn\.qkv\.bias", ("depth", "qkv_bias")),
    (r"blocks\.\d+\.ls[12]\.gamma", ("depth", "layer_scale")),
    (r"blocks\.\d+\.mlp\.fc[12]\.\w+", ("depth", "mlp_ratio")),
    (r"blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj)\.\w+", ("depth",)),
)


def tensors(state_dict: Mapping[str, Tensor], where: str) -> Iterator[tuple[str, Tensor]]:
    """The items of a state dict, of which each must be a tensor.

    Args:
        state_dict: What the caller was given.
        where: The caller's name, for errors.
    Raises:
        TypeError: A value is no tensor.
    """
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{where}: `state_dict` must map names to tensors, got {name!r}: {type(tensor).__name__}. "
                f"If that holds the weights, pass checkpoint[{name!r}]."
            )
        yield name, tensor


def fit(weights: dict[str, Tensor], config: ViTConfig, grid: Grid | None, where: str) -> dict[str, Tensor]:
    """Weights under timm's names in the form that `VisionTransformer(config).load_state_dict` takes.

    Args:
        weights: By timm's names.
        config: Of the model to load into.
        grid: Rows and columns of patches that the positions are of; as for `from_timm`.
        where: The caller's name, for errors.
    Returns:
        The same tensors, learned positions resampled if the grids differ.
    Raises:
        ValueError: They are not of this config, or have layers that this encoder has not.
    """
    if config.positions == "learned" and "pos_embed" in weights:
        weights = {**weights, "pos_embed": _fit_positions(weights["pos_embed"], config, grid, where)}
    _check(weights, config, where)
    return weights


def _fit_positions(
    table: Float[Tensor, "1 p d"], config: ViTConfig, grid: Grid | None, where: str
) -> Float[Tensor, "1 p_new d"]:
    prefix = config.prefix_length if config.prefix_positions else 0
    patches = table.shape[1] - prefix
    side = math.isqrt(max(patches, 1))
    old = grid or (config.grid if patches == math.prod(config.grid) else (side, side))
    if patches != math.prod(old):
        raise ValueError(
            f"{where}: `pos_embed` must be {prefix} + h·w positions with (h, w) = {grid or 'a square'}, "
            f"got {table.shape[1]}. "
            "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
        )
    return torch.cat([table[:, :prefix], resample(table[:, prefix:], old, config.grid)], dim=1)


def _check(weights: Mapping[str, Tensor], config: ViTConfig, where: str) -> None:
    """Raise unless `weights` has the names and shapes of the config's model."""
    with torch.device("meta"):
        expected = _shapes(VisionTransformer(config).state_dict())
    got = _shapes(weights)
    wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if not wrong:
        return
    foreign = [name for name in wrong if not _fields(name)]
    if foreign:
        raise ValueError(
            f"{where}: `state_dict` must be of a plain ViT, got {_some(foreign)}. "
            "This encoder has no such layers: choose another checkpoint."
        )
    fields = dict.fromkeys(field for name in wrong for field in _fields(name))
    details = [f"`{name}` {got.get(name, 'missing')} for {expected.get(name, 'none')}" for name in wrong]
    raise ValueError(
        f"{where}: `state_dict` must have the tensors of the config's model, got {_some(details)}. "
        f"Set as in the checkpoint: {', '.join(fields)}."
    )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _fields(name: str) -> tuple[str, ...]:
    return next((fields for pattern, fields in FIELDS if re.fullmatch(pattern, name)), ())


def _some(items: list[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
