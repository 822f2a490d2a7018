"""The wheel alone: every built-in method, made by its name."""

import torch

import mmm_fusion

names = [method.name for method in mmm_fusion.available()]
assert names == sorted(names)
assert {"add", "concat", "mlp", "visual_expert"} <= set(names)
for name in names:
    method = mmm_fusion.create(name, 8, 6, heads=2, dropout=0.0)
    tokens = method(torch.randn(2, 3, 8), torch.randn(2, 4, 6), image_grid=(2, 2)).tokens
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == 8
    print(name, tuple(tokens.shape))
