"""The wheel with its siblings: the block with every method, and a model that is saved and loaded."""

import tempfile

import torch

from mmm_block import MultiModalMamba, MultiModalMambaBlock
from mmm_fusion import available

for method in available():
    block = MultiModalMambaBlock(
        dim=8,
        depth=1,
        dropout=0.0,
        heads=2,
        d_state=4,
        image_size=16,
        patch_size=8,
        encoder_dim=8,
        encoder_depth=1,
        encoder_heads=2,
        fusion_method=method.name,
    )
    out = block(torch.randn(2, 3, 8), torch.randn(2, 3, 16, 16))
    out.sum().backward()
    print(block.check_fusion_method(), tuple(out.shape))

model = MultiModalMamba(vocab_size=10, dim=8, depth=1, image_size=16, patch_size=8, encoder_depth=1, heads=2)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    print(MultiModalMamba.from_pretrained(folder).config)
