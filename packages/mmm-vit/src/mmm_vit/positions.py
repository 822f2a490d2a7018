"""Positions of patches on a grid of any size.

A model's positions belong to the grid of its `image_size`. An image of another size is taken to show the same
field of view at another resolution: its grid samples the same positions more or less densely, axis by axis.
Row i of h stands at row (i + ½) · h₀ / h − ½ of the model's h₀, so that the two grids share their edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Grid = tuple[int, int]


def resample(table: Float[Tensor, "1 p d"], old: Grid, new: Grid) -> Float[Tensor, "1 p_new d"]:
    """Learned positions of one grid, for another: bicubic, with antialiasing where the grid gets coarser.

    Args:
        table: `(1, p, d)` with p = h·w of `old`, in raster order.
        old: Rows and columns of the table.
        new: Rows and columns wanted.
    Returns:
        `(1, p, d)` with p = h·w of `new`, dtype of `table`; the table itself where the grids agree.
    Source:
        As timm's `resample_abs_pos_embed`, in at least float32. Two matrix products replace torch's kernel, whose
        backward pass fails under `torch.compile` once sizes are dynamic (torch 2.13).
    """
    if old == new:
        return table
    exact = torch.promote_types(table.dtype, torch.float32)
    rows, columns = (_bicubic(n, m, exact, table.device) for n, m in zip(old, new, strict=True))
    with torch.autocast(table.device.type, enabled=False):
        field = table.to(exact).unflatten(1, old)  # (1, h, w, d)
        field = torch.einsum("ih,bhwd->biwd", rows, field)
        field = torch.einsum("jw,biwd->bijd", columns, field)
    return field.flatten(1, 2).to(table.dtype)  # (1, p, d)


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
        _waves(_places(n, m, exact, device), frequency) for n, m in zip(model_grid or grid, grid, strict=True)
    )
    h, w = grid
    table = torch.cat([columns.expand(h, w, -1), rows[:, None].expand(h, w, -1)], dim=-1)  # (h, w, d)
    return table.flatten(0, 1)[None].to(dtype)


def _places(old: int, new: int, dtype: torch.dtype, device: torch.device | None) -> Float[Tensor, " new"]:
    """Where the centres of `new` cells stand among `old` ones on the same line."""
    return (torch.arange(new, dtype=dtype, device=device) + 0.5) * (old / new) - 0.5


def _waves(place: Float[Tensor, " n"], frequency: Float[Tensor, " f"]) -> Float[Tensor, "n two_f"]:
    angle = torch.outer(place, frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _bicubic(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "new old"]:
    """Weight of each old cell in each new one: Keys' kernel (a = −½) on the coarser of the two grids."""
    place = _places(old, new, dtype, device)[:, None]
    x = (torch.arange(old, dtype=dtype, device=device) - place).abs() / max(old / new, 1)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weight = torch.where(x < 1, near, far) * (x < 2)
    return weight / weight.sum(dim=1, keepdim=True)
