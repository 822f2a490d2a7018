"""One token of whole Mamba layers by a single call of the native library: what decoding does.

The kernels are in `native/step.inl`; they run those that the operations of `Mamba.step` run.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmm_core.eager import writable
from mmm_core.native_library import array, call
from mmm_core.products import are_streams, is_called_as_it_is, is_plain, kernel_takes, unwatched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


def native_step(
    layer: Any, x: Float[Tensor, "b d"], state: tuple[Float[Tensor, "b e t"], Float[Tensor, "b e n"]]
) -> Float[Tensor, "b d"] | None:
    """One token through a layer, its state written in place, where the kernel can run it.

    That is for a few rows on the CPU with nobody looking on, projections that are plain `torch.nn.Linear`, and tensors
    that fit each other. Elsewhere nothing is done, and the caller goes through the operations one by one.

    Args:
        layer: A `Mamba` without norms on its selection, or another module with its parameters under its names.
        x: The token of each row, `(b, dim)`.
        state: As `MambaState`.
    Returns:
        `(b, dim)`; None where nothing was done.
    """
    parts = _parts(layer, x, x.shape, state)
    if parts is None or not kernel_takes("Mamba.step", x) or not all(map(writable, state)):
        return None
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    sizes, tensors = parts
    call("mmm_core_step", [*sizes, *array(x), *array(out), *tensors])
    return out


def native_stack(
    norms: Sequence[nn.Module],
    mixers: Sequence[Any],
    x: Float[Tensor, "b d"],
    states: Sequence[tuple[Float[Tensor, "b e t"], Float[Tensor, "b e n"]]],
) -> Float[Tensor, "b d"] | None:
    """One token through residual layers one behind the other, `x + mixer.step(norm(x), state)` each, where it can run.

    Python is asked once for all layers, so that it is not fetched back into the caches behind the weights of each.

    Args:
        norms: `torch.nn.RMSNorm`s with weights, in the dtype of the layer behind each.
        mixers: As the layer of `native_step`.
        x: The token of each row, `(b, dim)`, in float32; in float64 where the layers are.
        states: That of each layer; written in place.
    Returns:
        `(b, dim)`; None where nothing was done.
    """
    if not (x.dtype in (torch.float32, torch.float64) and unwatched((x,)) and kernel_takes("Mamba.step", x)):
        return None
    words: list[int] = []
    for norm, mixer, state in zip(norms, mixers, states, strict=True):
        if not (type(norm) is nn.RMSNorm and is_called_as_it_is(norm) and norm.eps is not None):
            return None
        weight: Any = norm.weight
        parts = None if weight is None or weight.shape != x.shape[1:] else _parts(mixer, weight, x.shape, state)
        if parts is None or torch.promote_types(weight.dtype, torch.float32) != x.dtype:
            return None
        sizes, tensors = parts
        (eps,) = unpack("q", pack("d", norm.eps))
        words += [eps, *array(weight), *sizes, *array(None), *array(None), *tensors]
    if not all(writable(each) for state in states for each in state):
        return None
    out = x.clone(memory_format=torch.contiguous_format)
    call("mmm_core_stack", [x.dtype == torch.float64, *x.shape, len(mixers), *array(out), *words])
    return out


def _parts(
    layer: Any, alike: Tensor, shape: Sequence[int], state: tuple[Tensor, Tensor]
) -> tuple[list[int], list[int]] | None:
    """A layer as `StepCall` of native/abi.h has it, its sizes and its tensors behind x and out; None: not for it.

    Args:
        layer: The layer.
        alike: A tensor of the dtype that its projections must have.
        shape: That of x.
        state: Its state.
    """
    in_proj, conv1d, x_proj = layer.in_proj, layer.conv1d, layer.x_proj
    dt_proj, out_proj = layer.dt_proj, layer.out_proj
    if not all(map(is_plain, (in_proj, x_proj, dt_proj, out_proj))):
        return None
    A_log, D, (conv, ssm) = layer.A_log, layer.D, state
    weights = (in_proj.weight, x_proj.weight, dt_proj.weight, out_proj.weight)
    biases = (in_proj.bias, x_proj.bias, out_proj.bias)
    others = (conv1d.weight, conv1d.bias, dt_proj.bias, A_log, D, conv, ssm)
    wide = alike.dtype == torch.float64
    if not (unwatched((alike, *weights, *biases), others) and are_streams(weights)):
        return None
    if not wide and any(tensor is not None and tensor.dtype == torch.float64 for tensor in others):
        return None
    (b, d), (e, n), rank, taps = shape, A_log.shape, weights[2].shape[1], conv1d.weight.shape[-1]
    expected = (
        *((weights[0], (2 * e, d)), (biases[0], (2 * e,))),
        *((conv1d.weight, (e, 1, taps)), (conv1d.bias, (e,))),
        *((weights[1], (rank + 2 * n, e)), (biases[1], (rank + 2 * n,))),
        *((weights[2], (e, rank)), (dt_proj.bias, (e,)), (A_log, (e, n)), (D, (e,))),
        *((weights[3], (d, e)), (biases[2], (d,))),
        *((conv, (b, e, taps - 1)), (ssm, (b, e, n))),
    )
    if not all(tensor is None or tensor.shape == wanted for tensor, wanted in expected):
        return None
    return [wide, b, d, e, n, taps, rank], [word for tensor, _ in expected for word in array(tensor)]
