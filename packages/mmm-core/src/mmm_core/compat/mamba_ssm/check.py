"""A, B and C as mamba_ssm admits them, checked under their names there and brought into the form of `System`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.errors import ShapeError, expect_floating, expect_shape

if TYPE_CHECKING:
    from torch import Tensor


def expect_system(
    where: str,
    names: tuple[str, ...],
    tensors: tuple[Tensor | None, ...],
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
) -> None:
    """Raise unless all tensors are floating and on the first one's device.

    A may be complex, and where it is, a constant B or C too.

    Raises:
        TypeError: A tensor is of another dtype.
        ValueError: A tensor is on another device.
    """
    pair = (x.real if A.is_complex() and x is not None and x.ndim == 2 else x for x in (B, C))
    expect_floating(where, (*names, "A", "B", "C"), (*tensors, A.real, *pair))


def expect_transition(where: str, A: Tensor, e: int) -> None:
    """Raise `ShapeError` unless A is (e, n)."""
    if A.ndim != 2 or A.shape[0] != e or A.shape[1] == 0:
        raise ShapeError(f"{where}: `A` must be (e, n) with e = {e} and n >= 1, got {tuple(A.shape)}.")


def projection(where: str, name: str, x: Tensor, A: Tensor, b: int, l: int) -> Tensor:
    """B or C, checked: a constant one as it is, (e, n), one that varies as (b, l, g, n), complex where A is.

    Raises:
        ShapeError: An axis disagrees; names the tensor and the axis.
    """
    e, n = A.shape
    if x.ndim == 2:
        expect_shape(where, name, x, "e n", (e, n))
        return x
    letter, length = ("2l", 2 * l) if A.is_complex() else ("l", l)
    if x.ndim == 4:
        expect_shape(where, name, x, f"b g n {letter}", (b, x.shape[1], n, length))
        if x.shape[1] == 0 or e % x.shape[1]:
            raise ShapeError(f"{where}: e = {e} must be divisible by the g = {x.shape[1]} groups of `{name}`.")
    else:
        hint = f"If it is (b, {letter}, n), pass {name}.transpose(1, 2)." if x.shape == (b, length, n) else ""
        expect_shape(where, name, x, f"b n {letter}", (b, n, length), hint)
        x = x.unsqueeze(1)
    x = x.permute(0, 3, 1, 2)
    return interleaved(x, 1) if A.is_complex() else x


def expect_groups(where: str, B: Tensor, C: Tensor) -> None:
    """Raise `ShapeError` where B and C both vary, in unlike groups."""
    groups = {x.shape[2] for x in (B, C) if x.ndim == 4} - {1}
    if len(groups) > 1:
        raise ShapeError(
            f"{where}: `B` and `C` must have the same number of groups, got g = {B.shape[2]} and {C.shape[2]}."
        )


def interleaved(x: Tensor, axis: int) -> Tensor:
    """The complex tensor whose real and imaginary parts stand in turn along `axis`."""
    pairs = x.to(arithmetic_dtype((x,))).unflatten(axis, (x.shape[axis] // 2, 2))
    real, imaginary = pairs.unbind(axis + 1)
    return torch.complex(real, imaginary)
