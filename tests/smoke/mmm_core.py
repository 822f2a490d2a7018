"""The wheel alone: a Mamba layer, forward and backward, on the native library that the wheel carries."""

from importlib.metadata import distribution

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
assert explain().chosen == "native"
# One wheel for every Python and every torch of a platform.
tags = [line for line in (distribution("mmm-core").read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
assert len(tags) == 1, tags
assert tags[0].startswith("Tag: py3-none-"), tags
assert not tags[0].endswith("-any"), tags
