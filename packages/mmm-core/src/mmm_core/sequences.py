"""Packed sequences: where each begins and ends in the one row that holds them.

Scan and convolution see every call as a list of spans along `l`. A call without `cu_seqlens` is one span over all
rows; a packed call has one span a sequence, and its states hold one row a sequence.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_core.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


class Span(NamedTuple):
    """One sequence: positions `start` to `stop` of the row, its state in rows `rows` of the state tensors."""

    start: int
    stop: int
    rows: slice


def spans(where: str, length: int, cu_seqlens: Tensor | None) -> list[Span]:
    """The spans of a call, in order.

    Args:
        where: The function that calls, for the error's text.
        length: Positions in the row, `l`.
        cu_seqlens: Boundaries, `(k+1,)`, or None for one sequence.
    Raises:
        ShapeError: The boundaries do not run from 0 to `length` without going back.
    """
    if cu_seqlens is None:
        return [Span(0, length, slice(None))]
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length:
        got = f"from {bounds[0]} to {bounds[-1]}"
    elif falls := [pair for pair in pairwise(bounds) if pair[0] > pair[1]]:
        got = f"{falls[0][1]} after {falls[0][0]}"
    else:
        return [Span(start, stop, slice(k, k + 1)) for k, (start, stop) in enumerate(pairwise(bounds))]
    raise ShapeError(
        f"{where}: `cu_seqlens` must rise from 0 to l = {length}, got {got}. "
        "It holds the cumulative lengths of the packed sequences, a zero first."
    )


def whole_bounds(where: str, length: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor | None:
    """The boundaries as a kernel on `device` reads them: checked as `spans` does, int64 and contiguous."""
    if cu_seqlens is None:
        return None
    spans(where, length, cu_seqlens)
    return cu_seqlens.to(device, torch.int64).contiguous()


def state_rows(batch: int, cu_seqlens: Tensor | None) -> int:
    """Rows of the state tensors: one a batch row, or one a packed sequence."""
    return batch if cu_seqlens is None else cu_seqlens.shape[0] - 1


def sequence_of(cu_seqlens: Tensor, length: int) -> Tensor:
    """The number of the sequence that each position belongs to, `(l,)`."""
    positions = torch.arange(length, device=cu_seqlens.device)
    return (positions[:, None] >= cu_seqlens[1:]).sum(dim=1)


def check_cu_seqlens(where: str, cu_seqlens: Tensor | None, name: str, packed: Tensor) -> None:
    """Raise unless `cu_seqlens` is None, or (k+1,) whole numbers where the tensor `packed` has a batch of 1.

    Raises:
        ShapeError: The rank is not 1, it is empty, or the batch is not 1.
        TypeError: It is no tensor, or does not hold whole numbers.
        ValueError: It is neither on the CPU nor on the device of `packed`.
    """
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, torch.Tensor):
        raise TypeError(
            f"{where}: `cu_seqlens` must be a tensor, got {type(cu_seqlens).__name__}. Pass torch.tensor(cu_seqlens)."
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{where}: `cu_seqlens` must be int32 or int64, got {cu_seqlens.dtype}.")
    if cu_seqlens.device.type != "cpu" and cu_seqlens.device != packed.device:
        raise ValueError(
            f"{where}: `cu_seqlens` must be on cpu or on the device of `{name}` = {packed.device}, "
            f"got {cu_seqlens.device}."
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ShapeError(f"{where}: `cu_seqlens` must be (k+1,) with a zero first, got {tuple(cu_seqlens.shape)}.")
    if packed.shape[0] != 1:
        raise ShapeError(f"{where}: `cu_seqlens` needs b = 1, got b = {packed.shape[0]}. Pack the rows into one.")
