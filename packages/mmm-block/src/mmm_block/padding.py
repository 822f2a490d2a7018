"""How layers that read from left to right are kept from meeting padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def real_first(mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """For each row the positions of its real tokens, in order, then those of its padding."""
    return mask.argsort(dim=1, descending=True, stable=True)


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
    bounds = F.pad(mask.sum(dim=1).cumsum(dim=0), (1, 1), value=mask.numel())
    bounds[0] = 0
    return x.flatten(0, 1)[order][None], bounds
