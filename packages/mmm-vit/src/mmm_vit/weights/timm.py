"""Checkpoints of timm and DeiT: what differs in name or shape from this package's own, and nothing else.

Names and shapes are timm's already. The mapping drops the classifier, renames what DeiT calls otherwise, and
fits learned positions to the grid of the config.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mmm_vit.weights.fit import fit, tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmm_vit.config import ViTConfig

CLASSIFIER = ("head.", "head_dist.", "fc_norm.", "pre_logits.")

RENAMED = (
    (r"^dist_token$", "reg_token"),  # DeiT's distillation token is a token like a register
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
)


def from_timm(
    state_dict: Mapping[str, Tensor], config: ViTConfig, *, grid: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """A timm or DeiT state dict in the form that `VisionTransformer(config).load_state_dict` takes.

    The number of heads, the activation and `norm_eps` leave no trace in a state dict: take them from the model it
    came from.

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
    weights = {
        _rename(name): tensor for name, tensor in tensors(state_dict, "from_timm") if not name.startswith(CLASSIFIER)
    }
    return fit(weights, config, grid, "from_timm")


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
