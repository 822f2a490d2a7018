"""Products of a few rows with a weight matrix: what decoding waits for, since every weight is fetched for every token.

The kernel is `native/product.inl`. It reads the weight at the rate of the memory, which torch's product of a matrix and
a vector does not. There is no operator here: what is traced, differentiated or wrapped goes through torch's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as _modules

from mmm_core.backends import choose
from mmm_core.eager import eager, needs_gradient
from mmm_core.errors import FLOATING
from mmm_core.native_library import array, call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

MOST_ROWS = 8
"""The most rows that the kernel is called for; torch's product of matrices is made for more."""


def linear(
    x: Float[Tensor, "*b k"], weight: Float[Tensor, "m k"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*b m"]:
    """`torch.nn.functional.linear`, sooner where `x` is a few rows, `(b, k)`, on the CPU and no gradient is recorded.

    For the head of a model that decodes. There a row's result depends neither on the rows beside it nor on the number
    of threads.

    Args:
        x: Rows, `(..., k)`.
        weight: `(m, k)`, dtype of `x`.
        bias: `(m,)`, likewise.
    Returns:
        `(..., m)`, dtype of `x`; the kernel's sums accumulate in float32 (float64 where the inputs are).
    """
    return _product(x, weight, bias) if _for_kernel(x, weight, bias) else F.linear(x, weight, bias)


def apply_linear(module: nn.Module, x: Float[Tensor, "*b k"]) -> Float[Tensor, "*b m"]:
    """`module(x)`, as by `linear` where the module is a plain `torch.nn.Linear`.

    One that was wrapped, replaced, quantised, hooked or compiled is called as it is.

    Args:
        module: Such a layer, or what stands in its place.
        x: Rows, `(..., k)`.
    Returns:
        `(..., m)`.
    """
    if is_plain(module) and _for_kernel(x, module.weight, module.bias):  # type: ignore[arg-type]
        return _product(x, module.weight, module.bias)  # type: ignore[arg-type]
    y: Tensor = module(x)
    return y


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is `torch.nn.functional.linear` on its parameters, and nothing else."""
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not (_modules._global_forward_hooks or _modules._global_forward_pre_hooks)
        and not (_modules._global_backward_hooks or _modules._global_backward_pre_hooks)
    )


def kernel_takes(
    where: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    others: Sequence[Tensor | None] = (),
) -> bool:
    """Whether the kernel may multiply `x` with these weights, shapes apart.

    Args:
        where: The function that asks, for the text of an error.
        x: A few rows; the weights and the biases must be of its dtype.
        weights: Matrices.
        biases: What is added to the products.
        others: What else the call reads or writes; none may be wider than `x`.
    """
    products = (x, *weights, *biases)
    tensors = (*products, *others)
    dtype = x.dtype
    return (
        x.ndim == 2
        and 0 < x.shape[0] <= MOST_ROWS
        and eager(tensors)
        and dtype in FLOATING
        and all(matrix.layout is torch.strided for matrix in (x, *weights))
        and all(weight.ndim == 2 and weight.stride(1) == 1 for weight in weights)
        and all(tensor is None or tensor.dtype == dtype for tensor in products)
        and all(tensor is None or tensor.dtype in FLOATING for tensor in others)
        and (dtype == torch.float64 or all(tensor is None or tensor.dtype != torch.float64 for tensor in others))
        and all(tensor is None or tensor.is_cpu for tensor in tensors)
        and not needs_gradient(tensors)
        and not torch.is_autocast_enabled("cpu")
        and choose(where, None, "x", x.device) == "native"
    )


def _for_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes a call: one that torch would take, with nobody looking on."""
    return (
        kernel_takes("linear", x, (weight,), (bias,))
        and x.shape[1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A call of the kernel."""
    (b, k), m = x.shape, weight.shape[0]
    out = x.new_empty((b, m))
    words = [x.dtype == torch.float64, b, k, m, *array(x), *array(weight), *array(bias), *array(out)]
    call("mmm_core_product", words)
    return out
