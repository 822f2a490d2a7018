"""Image encoder, fusion and Mamba layers in one module."""

from mmm_block.block import ImageState, ImageTokens, MultiModalMambaBlock

__all__ = ["ImageState", "ImageTokens", "MultiModalMambaBlock"]
