"""The wheel alone: a Mamba layer, forward and backward, and the list of backends."""

import torch

from mmm_core import Mamba, explain

layer = Mamba(8)
x = torch.randn(2, 5, 8, requires_grad=True)
y = layer(x)
assert y.shape == x.shape
y.sum().backward()
assert x.grad is not None
assert x.grad.isfinite().all()
print(explain())
