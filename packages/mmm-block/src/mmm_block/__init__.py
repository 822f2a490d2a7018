"""Image encoder, fusion and Mamba layers in one module."""

from mmm_block.block import ImageTokens, MultiModalMambaBlock

__all__ = ["ImageTokens", "MultiModalMambaBlock"]
