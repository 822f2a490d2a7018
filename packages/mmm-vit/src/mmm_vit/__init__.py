"""A Vision Transformer encoder whose checkpoints are timm's."""

from mmm_vit.config import ViTConfig
from mmm_vit.encoder import Tokens, VisionTransformer
from mmm_vit.errors import ShapeError
from mmm_vit.patch import PatchEmbed
from mmm_vit.weights import config_from_transformers, from_timm, from_transformers

__all__ = [
    "PatchEmbed",
    "ShapeError",
    "Tokens",
    "ViTConfig",
    "VisionTransformer",
    "config_from_transformers",
    "from_timm",
    "from_transformers",
]
