"""How layers that read from left to right are kept from meeting padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def real_first(mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """For each row the positions of its real tokens, in order, then those of its padding."""
    real = mask.to(torch.int64)
    count = real.sum(dim=1, keepdim=True)
    place = torch.where(mask, real.cumsum(1), count + (1 - real).cumsum(1)) - 1  # where each position goes
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(place)
    return torch.empty_like(place).scatter(1, place, positions)  # not a sort: ONNX has none that keeps the order


def past_padding(
    read: Callable[[Float[Tensor, "b m d"]], Float[Tensor, "b m e"]],
    x: Float[Tensor, "b m d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b m e"]:
    """`read(x)`, where `read` is causal: it meets the real tokens of each row first, wherever they stand.

    Args:
        read: Gives a token for each that it reads.
        x: Tokens.
        mask: True for a real token; None: all are.
    Returns:
        What `read` gave, each token in its place. What stands at padding means nothing.
    """
    if mask is None:
        return read(x)
    order = real_first(mask)[..., None]
    out = read(x.gather(1, order.expand_as(x)))
    return torch.empty_like(out).scatter(1, order.expand_as(out), out)


def pack(
    x: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None
) -> tuple[Float[Tensor, "r n d"], Int[Tensor, " bounds"] | None]:
    """Rows of different lengths for a layer whose state behind the last real token of each is wanted.

    Args:
        x: Tokens.
        mask: True for a real token; None: all are, and nothing changes.
    Returns:
        The real tokens of all rows in one, `(1, b * m, d)`, and the b + 2 boundaries between them: the padding of all
        rows is the last sequence, so that no size depends on the mask.
    """
    if mask is None:
        return x, None
    order = real_first(mask.flatten()[None])[0]
    ends = mask.sum(dim=1).cumsum(dim=0)
    # Not by F.pad: a graph that is traced would hold for one number of tokens.
    bounds = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), mask.numel())])
    return x.flatten(0, 1)[order][None], bounds


def unpack(x: Float[Tensor, "r n e"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m e"]:
    """What a layer made of packed rows, each token in its place. What stands at padding means nothing.

    Args:
        x: As `pack` lays out tokens.
        mask: The mask that `pack` was given.
    Returns:
        `(b, m, e)`.
    """
    if mask is None:
        return x
    order = real_first(mask.flatten()[None])[0]
    out: Tensor = torch.empty_like(x[0]).index_copy(0, order, x[0]).unflatten(0, mask.shape)
    return out


def pack_states(
    states: tuple[Float[Tensor, "b e _"], ...], mask: Bool[Tensor, "b m"] | None
) -> tuple[Float[Tensor, "s e _"], ...]:
    """The states from which packed rows are read on.

    Args:
        states: One a row.
        mask: The mask that `pack` was given.
    Returns:
        Without a mask as they are; else `(b + 1, e, n)`, with one of zeros for the padding, which `pack` puts last.
    """
    return states if mask is None else tuple(torch.cat([each, torch.zeros_like(each[:1])]) for each in states)
