"""Image encoder, fusion and Mamba layers in one module, and the language model on it."""

from typing import TYPE_CHECKING

from mmm_block.block import ImageState, ImageTokens, MultiModalMambaBlock
from mmm_block.config import MultiModalMambaConfig
from mmm_block.errors import CheckpointError, ConfigError, InputError
from mmm_block.generate import Generation, TokenStream
from mmm_block.layer import MambaLayer
from mmm_block.stack import MambaStack
from mmm_block.state import ModelState

if TYPE_CHECKING:
    from mmm_block.model import ModelOutput, MultiModalMamba
else:

    def __getattr__(name: str) -> object:
        # The model brings huggingface_hub, which takes longer to import than all the rest of this package.
        if name in ("ModelOutput", "MultiModalMamba"):
            from mmm_block import model

            return getattr(model, name)
        raise AttributeError(f"module 'mmm_block' has no attribute '{name}'")


__all__ = [
    "CheckpointError",
    "ConfigError",
    "Generation",
    "ImageState",
    "ImageTokens",
    "InputError",
    "MambaLayer",
    "MambaStack",
    "ModelOutput",
    "ModelState",
    "MultiModalMamba",
    "MultiModalMambaBlock",
    "MultiModalMambaConfig",
    "TokenStream",
]
