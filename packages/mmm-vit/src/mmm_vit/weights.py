"""Checkpoints of timm and DeiT: what differs in name or shape from this package's own, and nothing else.

Names and shapes are timm's already. The mapping drops the classifier, renames what DeiT calls otherwise, and
fits learned positions to the grid of the config.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from mmm_vit.encoder import VisionTransformer
from mmm_vit.positions import resample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

    from mmm_vit.config import ViTConfig

CLASSIFIER = ("head.", "head_dist.", "fc_norm.", "pre_logits.")

RENAMED = (
    (r"^dist_token$", "reg_token"),  # DeiT's distillation token is a token like a register
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
)

FIELDS = (  # what in a config decides whether there is such a tensor, and its shape
    (r"cls_token", ("class_token",)),
    (r"reg_token", ("registers",)),
    (r"pos_embed", ("positions",)),
    (r"patch_embed\.proj\.\w+", ("patch_size", "channels", "dim")),
    (r"norm\.\w+", ("final_norm",)),
    (r"blocks\.\d+\.attn\.qkv\.bias", ("depth", "qkv_bias")),
    (r"blocks\.\d+\.ls[12]\.gamma", ("depth", "layer_scale")),
    (r"blocks\.\d+\.mlp\.fc[12]\.\w+", ("depth", "mlp_ratio")),
    (r"blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj)\.\w+", ("depth",)),
)


def from_timm(
    state_dict: Mapping[str, Tensor], config: ViTConfig, *, grid: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """A timm or DeiT state dict in the form that `VisionTransformer(config).load_state_dict` takes.

    The number of heads and `norm_eps` leave no trace in a state dict: take them from the model it came from.

    Args:
        state_dict: Of a timm `vit_*`, `deit_*` or `deit3_*` model, or of the original DeiT code.
        config: Of the model to load into. Its `image_size` may differ from the checkpoint's.
        grid: Rows and columns of patches that the checkpoint's positions are of. Without it they are taken to
            be of the config's grid if their number fits, else of a square.
    Returns:
        New names to the same tensors; learned positions are resampled if the grids differ.
    Raises:
        TypeError: A value is no tensor.
        ValueError: The checkpoint is not of this config, or has layers that this encoder has not.
    Source:
        Names of timm 1.0 `vision_transformer.py`; of DeiT `models.py`, arXiv:2012.12877, arXiv:2204.07118.
    """
    weights = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"from_timm: `state_dict` must map names to tensors, got {name!r}: {type(tensor).__name__}. "
                f"If that holds the weights, pass checkpoint[{name!r}]."
            )
        if not name.startswith(CLASSIFIER):
            weights[_rename(name)] = tensor
    if config.positions == "learned" and "pos_embed" in weights:
        weights["pos_embed"] = _fit_positions(weights["pos_embed"], config, grid)
    _check(weights, config)
    return weights


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _fit_positions(
    table: Float[Tensor, "1 p d"], config: ViTConfig, grid: tuple[int, int] | None
) -> Float[Tensor, "1 p_new d"]:
    prefix = config.prefix_length if config.prefix_positions else 0
    patches = table.shape[1] - prefix
    side = math.isqrt(max(patches, 1))
    old = grid or (config.grid if patches == math.prod(config.grid) else (side, side))
    if patches != math.prod(old):
        raise ValueError(
            f"from_timm: `pos_embed` must be {prefix} + h·w positions with (h, w) = {grid or 'a square'}, "
            f"got {table.shape[1]}. "
            "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
        )
    return torch.cat([table[:, :prefix], resample(table[:, prefix:], old, config.grid)], dim=1)


def _check(weights: Mapping[str, Tensor], config: ViTConfig) -> None:
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
            f"from_timm: `state_dict` must be of a plain ViT, got {_some(foreign)}. "
            "This encoder has no such layers: choose another checkpoint."
        )
    fields = dict.fromkeys(field for name in wrong for field in _fields(name))
    details = [f"`{name}` {got.get(name, 'missing')} for {expected.get(name, 'none')}" for name in wrong]
    raise ValueError(
        f"from_timm: `state_dict` must have the tensors of the config's model, got {_some(details)}. "
        f"Set as in the checkpoint: {', '.join(fields)}."
    )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _fields(name: str) -> tuple[str, ...]:
    return next((fields for pattern, fields in FIELDS if re.fullmatch(pattern, name)), ())


def _some(items: list[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
