"""`selective_state_update`: mamba_ssm's step of the scan, with heads and with states in a pool."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from mmm_core import scan
from mmm_core.compat.mamba_ssm.slots import in_slots
from mmm_core.errors import ShapeError, expect_floating, expect_shape

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@torch.no_grad()
def selective_state_update(
    state: Float[Tensor, "s *h e n"],
    x: Float[Tensor, "b *h e"],
    dt: Float[Tensor, "b *h e"],
    A: Float[Tensor, "*h e n"],
    B: Float[Tensor, "b *g n"],
    C: Float[Tensor, "b *g n"],
    D: Float[Tensor, "*h e"] | None = None,
    z: Float[Tensor, "b *h e"] | None = None,
    dt_bias: Float[Tensor, "*h e"] | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b *h e"]:
    """One token of `selective_scan_fn`: writes `state`, returns the output. As theirs, it records no gradient.

    With heads, each tensor has an axis `h` in front of `e`, which is then the width of a head. What a head's channels
    share may be expanded, as Mamba-2's `A`, `dt`, `D` and `dt_bias` are.

    Args:
        state: State before the token, `(b, e, n)` or `(b, h, e, n)`; holds the state after it on return. With
            `state_batch_indices`, a pool of any number of states.
        x: Input, `(b, e)` or `(b, h, e)`.
        dt: Step sizes, shaped as `x`.
        A: Transition, `(e, n)` or `(h, e, n)`.
        B: Input projection, `(b, n)`, or `(b, g, n)` for `g` groups of heads.
        C: Output projection, shaped as `B`.
        D: Skip weight, `(e,)` or `(h, e)`.
        z: Gate, shaped as `x`.
        dt_bias: Added to `dt`, shaped as `D`.
        dt_softplus: Pass `dt` through softplus.
        state_batch_indices: The state of each row of `x`, `(b,)`, none of them twice. A negative one stands for
            padding: its output is zero, and no state is written.
    Returns:
        The output, shaped as `x` and in its dtype.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype, or `state_batch_indices` does not hold whole numbers.
        ValueError: A tensor is on another device than `x`.
        IndexError: `state_batch_indices` names a state that is not there.
    Source:
        As mamba_ssm's `selective_state_update`, of `mamba_ssm.ops.triton.selective_state_update`.
    """
    where = "selective_state_update"
    _check(where, state, x, dt, A, B, C, D, z, dt_bias, pool=state_batch_indices is not None)
    step = partial(_step, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
    if state_batch_indices is None:
        return step(state, x, dt, B, C, z)
    return in_slots(where, "state", state, "state_batch_indices", state_batch_indices, step, (x, dt, B, C, z))


def _step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    *,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """The step on the states themselves; heads are more channels."""
    if state.ndim == 3:
        return scan.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, delta_softplus=dt_softplus)
    D, dt_bias = (None if y is None else y.flatten() for y in (D, dt_bias))
    channels, z = state.flatten(1, 2), None if z is None else z.flatten(1)
    out = scan.selective_state_update(
        channels, x.flatten(1), dt.flatten(1), A.flatten(0, 1), B, C, D, z, dt_bias, delta_softplus=dt_softplus
    )
    if channels.data_ptr() != state.data_ptr():  # a copy, since heads are apart in memory
        state.copy_(channels.view_as(state))
    return out.view_as(x)


def _check(
    where: str,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    *,
    pool: bool,
) -> None:
    """Raise unless the tensors fit each other: `x` sets b, `state` sets all else but g, which `B` sets."""
    names = ("x", "state", "dt", "A", "B", "C", "D", "z", "dt_bias")
    expect_floating(where, names, (x, state, dt, A, B, C, D, z, dt_bias))
    if state.ndim not in (3, 4):
        raise ShapeError(f"{where}: `state` must be (b, e, n) or (b, h, e, n), got {tuple(state.shape)}.")
    heads, (rows, *inner, n) = ("h " if state.ndim == 4 else ""), state.shape
    b = x.shape[0] if pool and x.ndim else rows
    for name, y in (("x", x), ("dt", dt), ("z", z)):
        if y is not None:
            expect_shape(where, name, y, f"b {heads}e", (b, *inner))
    expect_shape(where, "A", A, f"{heads}e n", (*inner, n))
    for name, y in (("D", D), ("dt_bias", dt_bias)):
        if y is not None:
            expect_shape(where, name, y, f"{heads}e", tuple(inner))
    groups = (B.shape[1],) if B.ndim == 3 else ()
    axes = "b g n" if groups else "b n"
    for name, y in (("B", B), ("C", C)):
        expect_shape(where, name, y, axes, (b, *groups, n))
    count = inner[0] if heads else 1
    if groups and (groups[0] == 0 or count % groups[0]):
        raise ShapeError(f"{where}: h = {count} must be divisible by the g = {groups[0]} groups of `B`.")
