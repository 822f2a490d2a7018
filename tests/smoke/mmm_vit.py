"""The wheel alone: a small encoder reads a picture that is not square."""

import torch

from mmm_vit import VisionTransformer, ViTConfig

encoder = VisionTransformer(ViTConfig(image_size=16, patch_size=8, dim=8, depth=1, heads=2))
tokens = encoder(torch.randn(2, 3, 16, 24))
assert tokens.shape == (2, 6, 8)
print("tokens", tuple(tokens.shape))
