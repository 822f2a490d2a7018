"""What the operations compute in, and the gradient of the activation that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def arithmetic_dtype(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """The dtype of states, sums and products: float64 where an input is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def silu_backward(y: Tensor, grad: Tensor) -> Tensor:
    """The gradient of y, where `grad` is that of silu(y)."""
    sigmoid = torch.sigmoid(y)
    return grad * sigmoid * (1 + y * (1 - sigmoid))


def autocast_off(tensor: Tensor) -> torch.autocast:
    """A context in which a kernel computes in the dtypes of its call, whatever the caller's autocast would have."""
    return torch.autocast(tensor.device.type, enabled=False)
