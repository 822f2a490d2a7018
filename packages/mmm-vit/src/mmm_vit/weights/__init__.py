"""Checkpoints of other libraries, in the names and shapes of this encoder."""

from mmm_vit.weights.timm import from_timm
from mmm_vit.weights.transformers import config_from_transformers, from_transformers

__all__ = ["config_from_transformers", "from_timm", "from_transformers"]
