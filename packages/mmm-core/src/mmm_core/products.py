"""Products with weight matrices where no gradient is recorded: what prefill and decoding spend their time on.

A few rows take a kernel of ours, `native/product.inl`: decoding fetches every weight for every token, and the kernel
reads them at the rate of the memory, which torch's product of a matrix and a vector does not. More rows take the
operator that torch.compile uses for inference, oneDNN's: in float32 it is twice as fast as the BLAS on processors whose
widest vectors that library leaves alone. What is traced, differentiated or wrapped goes through torch's own product.
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
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

MOST_ROWS = 8
"""The most rows that our kernel is called for; oneDNN's and torch's are made for more."""
ONEDNN: Callable[..., Tensor] | None = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
"""oneDNN's product; None where this torch has none."""
_FORWARD = nn.Linear.forward


def linear(
    x: Float[Tensor, "*b k"], weight: Float[Tensor, "m k"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*b m"]:
    """`torch.nn.functional.linear`, sooner on the CPU where no gradient is recorded.

    Up to `MOST_ROWS` rows are multiplied by a kernel of ours. There a row's result depends neither on the rows beside
    it nor on the number of threads.

    Args:
        x: Rows, `(..., k)`.
        weight: `(m, k)`, dtype of `x`.
        bias: `(m,)`, likewise.
    Returns:
        `(..., m)`, dtype of `x`; the kernel's sums accumulate in float32 (float64 where the inputs are).
    """
    return (_product_for(x, weight, bias) or F.linear)(x, weight, bias)


def apply_linear(module: nn.Module, x: Float[Tensor, "*b k"]) -> Float[Tensor, "*b m"]:
    """`module(x)`, as by `linear` where the module is a plain `torch.nn.Linear`.

    One that was wrapped, replaced, quantised, hooked or compiled is called as it is.

    Args:
        module: Such a layer, or what stands in its place.
        x: Rows, `(..., k)`.
    Returns:
        `(..., m)`.
    """
    product = None
    if not torch.compiler.is_compiling() and is_plain(module):
        product = _product_for(x, module.weight, module.bias)  # type: ignore[arg-type]
    y: Tensor = module(x) if product is None else product(x, module.weight, module.bias)
    return y


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is `torch.nn.functional.linear` on its parameters, and nothing else."""
    return type(module) is nn.Linear and nn.Linear.forward is _FORWARD and is_called_as_it_is(module)


def is_called_as_it_is(module: nn.Module) -> bool:
    """Whether a call of the module is its class's `forward`: nobody put another in its place, or a hook beside it."""
    return (
        "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not (_modules._global_forward_hooks or _modules._global_forward_pre_hooks)
        and not (_modules._global_backward_hooks or _modules._global_backward_pre_hooks)
    )


def unwatched(products: Sequence[Tensor | None], others: Sequence[Tensor | None] = ()) -> bool:
    """Whether a product on the CPU may go past torch: nobody looks on, and no gradient is recorded.

    Args:
        products: What is multiplied, and biases; they must be of one dtype.
        others: What else the call reads or writes.
    """
    dtype, tensors = products[0].dtype, (*products, *others)  # type: ignore[union-attr]
    return (
        eager(tensors)
        and dtype in FLOATING
        and all(tensor is None or (tensor.dtype == dtype and tensor.layout is torch.strided) for tensor in products)
        and all(tensor is None or tensor.dtype in FLOATING for tensor in others)
        and all(tensor is None or tensor.is_cpu for tensor in tensors)
        and not needs_gradient(tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def kernel_takes(where: str, x: Tensor) -> bool:
    """Whether our kernel multiplies as many rows as `x`, `(..., k)`, has; `where` is who asks, for an error's text."""
    return 0 < x.numel() <= MOST_ROWS * x.shape[-1] and choose(where, None, "x", x.device) == "native"


def are_streams(weights: Sequence[Tensor]) -> bool:
    """Whether the rows of these tensors stand in memory as our kernel reads a weight's."""
    return all(weight.ndim == 2 and weight.stride(1) == 1 for weight in weights)


def _product_for(x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor] | None:
    """The product that takes a call, one that torch would take; None: torch's own."""
    if not unwatched((x, weight, bias)):  # first, since sizes may be symbols to whoever looks
        return None
    fits = x.ndim > 0 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] > 0 and weight.shape[0] > 0
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    if are_streams((weight,)) and kernel_takes("linear", x):
        return _multiply_rows
    if ONEDNN is not None and x.dtype == torch.float32 and torch.backends.mkldnn.enabled:
        return _multiply
    return None


def _multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product by our kernel."""
    m, k = weight.shape
    rows = x if x.ndim == 2 else x.reshape(-1, k)
    out = x.new_empty((rows.shape[0], m))
    words = [x.dtype == torch.float64, rows.shape[0], k, m, *array(rows), *array(weight), *array(bias), *array(out)]
    call("mmm_core_product", words)
    return out if x.ndim == 2 else out.view(*x.shape[:-1], m)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product by oneDNN."""
    return ONEDNN(x, weight, bias, "none", [], "")  # type: ignore[misc]
