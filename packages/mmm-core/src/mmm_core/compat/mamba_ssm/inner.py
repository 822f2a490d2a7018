"""`mamba_inner_fn`: all of a Mamba layer behind its first projection, as mamba_ssm fuses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.compat.mamba_ssm.check import expect_groups, expect_system, expect_transition, interleaved, projection
from mmm_core.compat.mamba_ssm.system import System
from mmm_core.conv import causal_conv1d
from mmm_core.errors import ShapeError, expect_rank, expect_shape

if TYPE_CHECKING:
    from jaxtyping import Float, Inexact
    from torch import Tensor

    from mmm_core.compat.mamba_ssm.scan import Projection


def mamba_inner_fn(
    xz: Float[Tensor, "b e2 l"],
    conv1d_weight: Float[Tensor, "e 1 k"],
    conv1d_bias: Float[Tensor, " e"] | None,
    x_proj_weight: Float[Tensor, "p e"],
    delta_proj_weight: Float[Tensor, "e r"],
    out_proj_weight: Float[Tensor, "o e"],
    out_proj_bias: Float[Tensor, " o"] | None,
    A: Inexact[Tensor, "e n"],
    B: Projection | None = None,
    C: Projection | None = None,
    D: Float[Tensor, " e"] | None = None,
    delta_bias: Float[Tensor, " e"] | None = None,
    B_proj_bias: Float[Tensor, " s"] | None = None,
    C_proj_bias: Float[Tensor, " s"] | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Float[Tensor, " n"] | None = None,
    c_rms_weight: Float[Tensor, " n"] | None = None,
    dt_rms_weight: Float[Tensor, " e"] | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Float[Tensor, "b l o"]:
    """A Mamba layer behind its first projection: convolution, the projections of delta, B and C, scan, last projection.

    Every floating and complex input gets its gradient, the weights of the norms too, which theirs leaves out.

    Args:
        xz: The convolution's input and behind it the gate, `(b, 2e, l)`.
        conv1d_weight: Taps, `(e, 1, k)`, oldest first.
        conv1d_bias: `(e,)`.
        x_proj_weight: Makes delta's `r` numbers, then B, then C, `(r + s + s, e)`: s is n, or 2n where `A` is complex.
            B, or C, is left out where it is given.
        delta_proj_weight: `(e, r)`.
        out_proj_weight: `(o, e)`.
        out_proj_bias: `(o,)`.
        A: Transition, `(e, n)`, real or complex.
        B: As in `selective_scan_fn`; None: from `x_proj_weight`.
        C: Likewise.
        D: Skip weight, `(e,)`.
        delta_bias: Added to delta, `(e,)`.
        B_proj_bias: Added to a B from `x_proj_weight`, `(s,)`; where `A` is complex, both parts of a number in turn.
        C_proj_bias: Likewise for C.
        delta_softplus: Pass delta through softplus.
        checkpoint_lvl: 0, or 1, by which theirs computes the convolution and delta anew in the backward. Neither
            changes the result; here both keep them.
        b_rms_weight: `(n,)`: an RMS norm with this weight goes over a varying B along n. `A` must be real.
        c_rms_weight: Likewise for C.
        dt_rms_weight: `(e,)`: likewise for delta, before `delta_bias`, along its channels.
        b_c_dt_rms_eps: Added to the norms' mean squares.
    Returns:
        `(b, l, o)`: channel-last, as theirs.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a floating dtype.
        ValueError: A tensor is on another device than `xz`; `checkpoint_lvl` is unknown; a norm of B or C meets what it
            cannot work on.
    Source:
        As mamba_ssm's `mamba_inner_fn`, of `mamba_ssm.ops.selective_scan_interface`.
    """
    where = "mamba_inner_fn"
    named = {
        "xz": xz, "conv1d_weight": conv1d_weight, "conv1d_bias": conv1d_bias, "x_proj_weight": x_proj_weight,
        "delta_proj_weight": delta_proj_weight, "out_proj_weight": out_proj_weight, "out_proj_bias": out_proj_bias,
        "D": D, "delta_bias": delta_bias, "B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias,
        "b_rms_weight": b_rms_weight, "c_rms_weight": c_rms_weight, "dt_rms_weight": dt_rms_weight,
    }  # fmt: skip
    expect_system(where, tuple(named), tuple(named.values()), A, B, C)
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"{where}: `checkpoint_lvl` must be 0 or 1, got {checkpoint_lvl!r}.")
    _expect_shapes(where, named, A, (B is None) + (C is None))
    b, _, l = xz.shape
    rank, size = delta_proj_weight.shape[1], _columns(A)

    x, z = xz.transpose(1, 2).chunk(2, dim=-1)  # (b, l, e)
    x, _ = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu", return_final_state=True)
    projected = F.linear(x, x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    delta = _normed(where, "dt", delta, dt_rms_weight, b_c_dt_rms_eps)
    columns_B, columns_C = projected[..., rank : rank + size], projected[..., projected.shape[-1] - size :]
    B = _made(columns_B, B_proj_bias, A) if B is None else projection(where, "B", B, A, b, l)
    C = _made(columns_C, C_proj_bias, A) if C is None else projection(where, "C", C, A, b, l)
    expect_groups(where, B, C)
    B = _normed(where, "B", B, b_rms_weight, b_c_dt_rms_eps)
    C = _normed(where, "C", C, c_rms_weight, b_c_dt_rms_eps)
    out, _ = System(A, B, C, D, delta_bias, delta_softplus).scan(x, delta, z)
    return F.linear(out, out_proj_weight, out_proj_bias)


def _columns(A: Tensor) -> int:
    """The numbers that make B, or C, at a position."""
    return A.shape[1] * (2 if A.is_complex() else 1)


def _made(x: Tensor, bias: Tensor | None, A: Tensor) -> Tensor:
    """B or C, (b, l, 1, n), from its columns of the projection."""
    x = x if bias is None else x + bias.to(x.dtype)
    x = interleaved(x, 2) if A.is_complex() else x
    return x.unsqueeze(2)


def _normed(where: str, name: str, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The RMS norm along the last axis, of what varies along `l` and is real."""
    if weight is None:
        return x
    if x.ndim == 2 or x.is_complex():
        kind = "constant" if x.ndim == 2 else "complex"
        raise ValueError(f"{where}: `{name.lower()}_rms_weight` needs a varying, real `{name}`, got a {kind} one.")
    dtype = arithmetic_dtype((x, weight))
    return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(x.dtype)


def _expect_shapes(where: str, named: dict[str, Tensor | None], A: Tensor, made: int) -> None:
    """Raise unless all but B and C fit: `xz` sets b, e and l, `A` sets n; `made` of B and C are of `x_proj_weight`."""
    tensors = {name: x for name, x in named.items() if x is not None}
    xz = tensors["xz"]
    if xz.ndim != 3 or xz.shape[1] % 2:
        raise ShapeError(f"{where}: `xz` must be (b, 2e, l), got {tuple(xz.shape)}.")
    e = xz.shape[1] // 2
    expect_transition(where, A, e)
    for name, axes in (("conv1d_weight", "e 1 k"), ("delta_proj_weight", "e r"), ("out_proj_weight", "o e")):
        expect_rank(where, name, tensors[name], axes)
    taps, rank, out = (tensors[f"{name}_weight"].shape for name in ("conv1d", "delta_proj", "out_proj"))
    shapes = {
        "conv1d_weight": ("e 1 k", (e, 1, taps[2])),
        "delta_proj_weight": ("e r", (e, rank[1])),
        "x_proj_weight": (f"r{'+s' * made} e", (rank[1] + made * _columns(A), e)),
        "out_proj_weight": ("o e", (out[0], e)),
        "out_proj_bias": ("o", (out[0],)),
        **dict.fromkeys(("B_proj_bias", "C_proj_bias"), ("s", (_columns(A),))),
        **dict.fromkeys(("b_rms_weight", "c_rms_weight"), ("n", (A.shape[1],))),
        **dict.fromkeys(("conv1d_bias", "D", "delta_bias", "dt_rms_weight"), ("e", (e,))),
    }
    for name, (axes, sizes) in shapes.items():
        if name in tensors:
            expect_shape(where, name, tensors[name], axes, sizes)
