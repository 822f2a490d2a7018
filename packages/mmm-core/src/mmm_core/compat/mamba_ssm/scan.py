"""`selective_scan_fn`: mamba_ssm's selective scan, channel-first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmm_core.compat.mamba_ssm.check import expect_groups, expect_system, expect_transition, projection
from mmm_core.compat.mamba_ssm.system import System
from mmm_core.errors import expect_rank, expect_shape

if TYPE_CHECKING:
    from jaxtyping import Float, Inexact
    from torch import Tensor

    Projection = Inexact[Tensor, "e n"] | Float[Tensor, "b *g n m"]  # m is l, or 2l where A is complex


def selective_scan_fn(
    u: Float[Tensor, "b e l"],
    delta: Float[Tensor, "b e l"],
    A: Inexact[Tensor, "e n"],
    B: Projection,
    C: Projection,
    D: Float[Tensor, " e"] | None = None,
    z: Float[Tensor, "b e l"] | None = None,
    delta_bias: Float[Tensor, " e"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Float[Tensor, "b e l"] | tuple[Float[Tensor, "b e l"], Inexact[Tensor, "b e n"]]:
    """The selective scan of `mmm_core.selective_scan`, channel-first, with mamba_ssm's choices of A, B and C.

    Every floating and complex input gets its gradient, also through the last state, which theirs leaves out. Inputs
    are read where they stand. The output stands channel-last in memory: what needs it otherwise, as a `.view` that
    merges batch and channels does, calls `.contiguous()`.

    Args:
        u: Input, `(b, e, l)`.
        delta: Step sizes, `(b, e, l)`.
        A: Transition, `(e, n)`; real, or complex, which runs in pure torch and gives twice the real part.
        B: Input projection: constant, `(e, n)`, complex where `A` is; or `(b, n, l)`, or `(b, g, n, l)` for `g` groups
            of channels. A varying one of a complex `A` has `2 l` in the place of `l`: real and imaginary part in turn.
        C: Output projection, in any of these shapes, of B's or of its own.
        D: Skip weight, `(e,)`.
        z: Gate, `(b, e, l)`; the output is multiplied by silu(z).
        delta_bias: Added to `delta`, `(e,)`.
        delta_softplus: Pass `delta` through softplus.
        return_last_state: Return the state after the last position as well.
    Returns:
        The output, `(b, e, l)` in u's dtype; with `return_last_state` also the last state, `(b, e, n)`, in float32
        (float64 where an input is), complex where `A` is.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a floating dtype.
        ValueError: A tensor is on another device than `u`.
    Source:
        As mamba_ssm's `selective_scan_fn`, of `mamba_ssm.ops.selective_scan_interface`.
    """
    where = "selective_scan_fn"
    expect_system(where, ("u", "delta", "D", "z", "delta_bias"), (u, delta, D, z, delta_bias), A, B, C)
    expect_rank(where, "u", u, "b e l")
    b, e, l = u.shape
    expect_transition(where, A, e)
    for name, x in (("delta", delta), ("z", z)):
        if x is not None:
            expect_shape(where, name, x, "b e l", (b, e, l))
    for name, x in (("D", D), ("delta_bias", delta_bias)):
        if x is not None:
            expect_shape(where, name, x, "e", (e,))
    B, C = projection(where, "B", B, A, b, l), projection(where, "C", C, A, b, l)
    expect_groups(where, B, C)
    system = System(A, B, C, D, delta_bias, delta_softplus)
    out, state = system.scan(u.transpose(1, 2), delta.transpose(1, 2), None if z is None else z.transpose(1, 2))
    out = out.transpose(1, 2)
    return (out, state) if return_last_state else out
