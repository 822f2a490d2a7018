"""States that stand in a pool and are taken by number, as servers keep them for requests that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_core.errors import expect_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def in_slots(
    where: str,
    pool_name: str,
    pool: Tensor,
    name: str,
    slots: Tensor,
    step: Callable[..., Tensor],
    rows: tuple[Tensor | None, ...],
) -> Tensor:
    """Run a step on the states that `slots` names; a negative number is a row of padding.

    Args:
        where: The function that calls, for the errors' texts.
        pool_name: What it calls the pool.
        pool: The states, `(slots, ...)`; those that are named are written.
        name: What it calls the numbers.
        slots: The number of each row's state, `(b,)`, int32 or int64, no state twice.
        step: Takes states and the rows of each tensor, writes the states and returns `(rows, ...)`.
        rows: The tensors with one row a number.
    Returns:
        What `step` returns, `(b, ...)`, with zeros in the rows of padding.
    Raises:
        ShapeError: There is not one number a row.
        TypeError: The numbers are not whole.
        IndexError: The pool has no such state.
    """
    expect_whole(where, name, slots)
    first = rows[0]
    assert first is not None
    expect_shape(where, name, slots, "b", (first.shape[0],))
    used = (slots >= 0).nonzero().squeeze(1)
    taken = slots[used].long()
    if taken.numel() and int(taken.max()) >= pool.shape[0]:
        raise IndexError(
            f"{where}: `{name}` must be below the {pool.shape[0]} states of `{pool_name}`, got {int(taken.max())}. "
            "A negative number stands for padding."
        )
    states = pool[taken]
    out = step(states, *(None if x is None else x[used] for x in rows))
    pool[taken] = states
    padded = out.new_zeros(slots.shape[0], *out.shape[1:])
    padded[used] = out
    return padded


def expect_whole(where: str, name: str, x: Tensor) -> None:
    """Raise `TypeError` unless a tensor is int32 or int64."""
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{where}: `{name}` must be int32 or int64, got {x.dtype}.")
