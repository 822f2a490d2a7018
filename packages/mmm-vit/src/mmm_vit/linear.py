"""The product of tokens and a matrix, by oneDNN's operator for inference.

In float32, `torch.nn.functional.linear` calls the BLAS that torch was built with. On processors whose widest vectors
that library does not use, oneDNN is twice as fast. In bfloat16 both are oneDNN's, and this way is the shorter one.
The weights are taken as they are in memory: nothing is packed that could go stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

PRODUCT: Callable[..., Tensor] | None = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
DTYPES = {torch.float32}
if PRODUCT is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.add(torch.bfloat16)
TENSORS = (torch.Tensor, nn.Parameter)  # subclasses have products of their own


class Linear(nn.Linear):
    """A dense layer; `torch.nn.Linear` in all but the library that may compute it."""

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Apply to each token by itself."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "*b o"]:
    """x · weightᵀ + bias.

    Args:
        x: `(…, i)`.
        weight: `(o, i)`.
        bias: `(o,)`.
    Returns:
        `(…, o)`, as by `torch.nn.functional.linear`.
    """
    if PRODUCT is not None and _takes(x, weight):
        return PRODUCT(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product may run: it knows no derivatives, and none may be wanted."""
    return (
        x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.device.type == weight.device.type == "cpu"
        and type(x) in TENSORS
        and type(weight) in TENSORS
        and not derivatives(x, weight)
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
    )


def derivatives(*tensors: Tensor) -> bool:
    """Whether autograd records, or torch traces, what is computed from these tensors."""
    return (
        (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or getattr(forward_ad, "_current_level", -1) >= 0
        or torch.compiler.is_compiling()
    )
