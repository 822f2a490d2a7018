"""One token of a whole Mamba layer by a single call of the native library: what decoding does, layer by layer.

The kernel is `native/step.inl`, which runs the kernels that the operations of `Mamba.step` run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmm_core.eager import writable
from mmm_core.native_library import array, call
from mmm_core.products import is_plain, kernel_takes, unwatched

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def native_step(
    layer: Any, x: Float[Tensor, "b d"], conv: Float[Tensor, "b e t"], ssm: Float[Tensor, "b e n"]
) -> Float[Tensor, "b d"] | None:
    """One token through a layer, its states written in place, where the kernel can run it.

    That is for a few rows on the CPU with nobody looking on, projections that are plain `torch.nn.Linear`, and tensors
    that fit each other. Elsewhere nothing is done, and the caller goes through the operations one by one.

    Args:
        layer: A `Mamba`, or another module with its parameters under its names.
        x: The token of each row, `(b, dim)`.
        conv: The last inputs of the convolution, `(b, e, k-1)`.
        ssm: The state of the scan, `(b, e, n)`.
    Returns:
        `(b, dim)`; None where nothing was done.
    """
    in_proj, conv1d, x_proj = layer.in_proj, layer.conv1d, layer.x_proj
    dt_proj, out_proj = layer.dt_proj, layer.out_proj
    if not all(map(is_plain, (in_proj, x_proj, dt_proj, out_proj))):
        return None
    A_log, D = layer.A_log, layer.D
    weights = (in_proj.weight, x_proj.weight, dt_proj.weight, out_proj.weight)
    biases = (in_proj.bias, x_proj.bias, out_proj.bias)
    others = (conv1d.weight, conv1d.bias, dt_proj.bias, A_log, D, conv, ssm)
    if not (unwatched((x, *weights, *biases), others) and kernel_takes("Mamba.step", x, weights)):
        return None
    if x.dtype != torch.float64 and any(tensor is not None and tensor.dtype == torch.float64 for tensor in others):
        return None
    (b, d), (e, n), rank, taps = x.shape, A_log.shape, weights[2].shape[1], conv1d.weight.shape[-1]
    tensors = (  # in the order of `StepCall` of native/abi.h
        *((x, (b, d)), (weights[0], (2 * e, d)), (biases[0], (2 * e,))),
        *((conv1d.weight, (e, 1, taps)), (conv1d.bias, (e,))),
        *((weights[1], (rank + 2 * n, e)), (biases[1], (rank + 2 * n,))),
        *((weights[2], (e, rank)), (dt_proj.bias, (e,)), (A_log, (e, n)), (D, (e,))),
        *((weights[3], (d, e)), (biases[2], (d,))),
        *((conv, (b, e, taps - 1)), (ssm, (b, e, n))),
    )
    if not all(tensor is None or tensor.shape == shape for tensor, shape in tensors):
        return None
    if not (writable(conv) and writable(ssm)):
        return None
    out = x.new_empty((b, d))
    words = [x.dtype == torch.float64, b, d, e, n, taps, rank]
    for tensor, _ in tensors:
        words += array(tensor)
    call("mmm_core_step", [*words, *array(out)])
    return out
