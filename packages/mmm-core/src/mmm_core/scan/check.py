"""The arguments of a scan or of a single step, checked once, before a backend is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmm_core.errors import ShapeError, expect_floating, expect_rank, expect_shape
from mmm_core.sequences import check_cu_seqlens, state_rows

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def check(
    where: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor | None,
    *,
    state_name: str,
    outer: str,
    cu_seqlens: Tensor | None = None,
) -> None:
    """Raise unless the tensors fit each other: `u` sets b, l and e, `A` sets n, and `B` sets g.

    Args:
        where: The function that checks, for the error's text.
        state_name: What that function calls the state.
        outer: The axes before the channels: "b l", or "b" for a single step.
    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
        TypeError: A tensor is not of a real floating dtype.
        ValueError: A tensor is on another device than `u`.
    """
    expect_floating(where, (*_NAMES, state_name), (u, delta, A, B, C, D, z, delta_bias, state))
    expect_rank(where, "u", u, f"{outer} e")
    check_cu_seqlens(where, cu_seqlens, "u", u)
    *sizes, e = u.shape
    if A.ndim != 2 or A.shape[0] != e or A.shape[1] == 0:
        raise ShapeError(f"{where}: `A` must be (e, n) with e = {e} and n >= 1, got {tuple(A.shape)}.")
    n = A.shape[1]
    expect_shape(where, "delta", delta, f"{outer} e", (*sizes, e))
    if z is not None:
        expect_shape(where, "z", z, f"{outer} e", (*sizes, e))
    _check_projection(where, outer, "B", B, (*sizes, n))
    _check_projection(where, outer, "C", C, (*sizes, n))
    if B.ndim != C.ndim or B.shape[-2] != C.shape[-2]:
        raise ShapeError(f"{where}: `B` and `C` must have the same shape, got {tuple(B.shape)} and {tuple(C.shape)}.")
    if B.ndim > u.ndim and (B.shape[-2] == 0 or e % B.shape[-2]):
        raise ShapeError(f"{where}: e = {e} must be divisible by the g = {B.shape[-2]} groups of `B`.")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            expect_shape(where, name, vector, "e", (e,))
    if state is not None:
        rows = "b" if cu_seqlens is None else "k"
        expect_shape(where, state_name, state, f"{rows} e n", (state_rows(u.shape[0], cu_seqlens), e, n))


def _check_projection(where: str, outer: str, name: str, x: Tensor, sizes: tuple[int, ...]) -> None:
    """Check B or C, with groups or without; a call with swapped length and state gets the way out."""
    if x.ndim == len(sizes) + 1:
        expect_shape(where, name, x, f"{outer} g n", (*sizes[:-1], x.shape[-2], sizes[-1]))
    elif x.shape != sizes:
        swapped = outer == "b l" and x.shape == (sizes[0], sizes[2], sizes[1])
        hint = f"If it is (b, n, l), pass {name}.transpose(1, 2)." if swapped else ""
        expect_shape(where, name, x, f"{outer} n", sizes, hint)
