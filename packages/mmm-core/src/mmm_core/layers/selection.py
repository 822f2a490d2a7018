"""From what a layer's projections give to what the scan takes: the parts that every layer around it shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_core.products import apply_linear, linear

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LOG2E = math.log2(math.e)


def transition(A_log: Float[Tensor, "e n"]) -> Float[Tensor, "e n"]:
    """A = -exp(A_log), in float32 or wider."""
    A_log = A_log.to(torch.promote_types(A_log.dtype, torch.float32))
    # torch hands `exp` to all its threads however small it is, which a single token waits long for.
    return -torch.exp2(A_log * LOG2E)


def step_sizes(dt_proj: nn.Module, dt: Float[Tensor, "*b r"]) -> tuple[Float[Tensor, "*b e"], Tensor | None]:
    """`delta`, and its bias, which joins in the scan in float32; an adapter or a quantised product adds it itself."""
    if type(dt_proj) is nn.Linear:
        return linear(dt, dt_proj.weight), dt_proj.bias
    return apply_linear(dt_proj, dt), None


def normed(norm: nn.RMSNorm, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """`norm(x)` in the dtype of `x`: autocast leaves it in half precision beside a weight in full."""
    weight = None if norm.weight is None else norm.weight.to(x.dtype)
    return F.rms_norm(x, norm.normalized_shape, weight, norm.eps)
