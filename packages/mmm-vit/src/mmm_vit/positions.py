"""Positions of patches on a grid of any size.

A model's positions belong to the grid of its `image_size`. An image of another size is taken to show the same
field of view at another resolution: its grid samples the same positions more or less densely, axis by axis.
Row i of h stands at row (i + ½) · h₀ / h − ½ of the model's h₀, so that the two grids share their edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Grid = tuple[int, int]


def resample(table: Float[Tensor, "1 p d"], old: Grid, new: Grid) -> Float[Tensor, "1 p_new d"]:
    """Learned positions of one grid, for another.

    Args:
        table: `(1, p, d)` with p = h·w of `old`, in raster order.
        old: Rows and columns of the table.
        new: Rows and columns wanted.
    Returns:
        `(1, p, d)` with p = h·w of `new`, dtype of `table`; the table itself where the grids agree.
    Source:
        Bicubic with antialiasing, in at least float32, as timm's `resample_abs_pos_embed`.
    """
    if old == new:
        return table
    field = table.to(torch.promote_types(table.dtype, torch.float32))
    field = field.unflatten(1, old).permute(0, 3, 1, 2)  # (1, d, h, w)
    field = F.interpolate(field, new, mode="bicubic", antialias=True)
    return field.flatten(2).transpose(1, 2).to(table.dtype)  # (1, p, d)


def sincos(
    grid: Grid,
    dim: int,
    *,
    model_grid: Grid | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "1 p d"]:
    """Sin-cos positions: half of the channels tell the column, half the row.

    Each half is `dim / 4` sines and then as many cosines, of periods from 2π to nearly 10000 · 2π patches.

    Args:
        grid: Rows and columns wanted.
        dim: Width of a token, divisible by 4.
        model_grid: Rows and columns of the grid where a patch is one unit; `grid` itself without it.
        dtype: Of the result. Angles are at least float32.
        device: Of the result.
    Returns:
        `(1, p, d)` with p = h·w of `grid`, in raster order.
    Source:
        arXiv:2111.06377 (MAE), in the channel order of its code.
    """
    exact = torch.promote_types(dtype, torch.float32)
    frequency = 10000 ** -(torch.arange(dim // 4, dtype=exact, device=device) / (dim // 4))
    rows, columns = (
        _waves(size, model_size, frequency) for size, model_size in zip(grid, model_grid or grid, strict=True)
    )
    h, w = grid
    table = torch.cat([columns.expand(h, w, -1), rows[:, None].expand(h, w, -1)], dim=-1)  # (h, w, d)
    return table.flatten(0, 1)[None].to(dtype)


def _waves(size: int, model_size: int, frequency: Float[Tensor, " f"]) -> Float[Tensor, "n two_f"]:
    place = torch.arange(size, dtype=frequency.dtype, device=frequency.device)
    place = (place + 0.5) * (model_size / size) - 0.5
    angle = torch.outer(place, frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
