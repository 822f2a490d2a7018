"""Positions: the sin-cos formula, and how both kinds follow the image's size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmm_vit.positions import resample, sincos


def mae(row: float, column: float, dim: int) -> list[float]:
    """MAE's position of one patch, written out: column before row, sines before cosines."""
    out = []
    for place in (column, row):
        angles = [place / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
        out += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return out


@pytest.mark.parametrize(("grid", "dim"), [((1, 1), 4), ((3, 5), 16), ((14, 14), 48), ((40, 2), 8)])
def test_sincos_is_maes(grid, dim):
    expected = torch.tensor([mae(i, j, dim) for i in range(grid[0]) for j in range(grid[1])])
    torch.testing.assert_close(sincos(grid, dim), expected[None], rtol=0, atol=1e-5)


def test_sincos_of_another_grid_is_the_formula_between_the_patches():
    table = sincos((6, 5), 16, model_grid=(3, 10))
    expected = torch.tensor([mae((i + 0.5) / 2 - 0.5, 2 * j + 0.5, 16) for i in range(6) for j in range(5)])
    torch.testing.assert_close(table, expected[None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sincos_in_half_precision_is_the_rounded_float32(dtype):
    assert torch.equal(sincos((5, 300), 8, dtype=dtype), sincos((5, 300), 8).to(dtype))


def test_sincos_in_double_precision_is_exact():
    expected = torch.tensor([mae(i, j, 8) for i in range(3) for j in range(50)], dtype=torch.float64)
    got = sincos((3, 50), 8, dtype=torch.float64)
    torch.testing.assert_close(got, expected[None], rtol=0, atol=1e-12)


def test_resample_to_the_same_grid_is_the_table_itself():
    table = torch.randn(1, 12, 4)
    assert resample(table, (3, 4), (3, 4)) is table


def test_resample_keeps_rows_and_columns_apart():
    rows = torch.arange(8.0)[:, None].expand(8, 6)
    columns = torch.arange(6.0).expand(8, 6)
    table = torch.stack([rows, columns], dim=-1).reshape(1, 48, 2)
    field = resample(table, (8, 6), (16, 6)).reshape(16, 6, 2)
    inside = (torch.arange(16.0) + 0.5) / 2 - 0.5
    # A straight line stays one away from the border; the axis that keeps its size keeps its values.
    torch.testing.assert_close(field[4:-4, :, 0], inside[4:-4, None].expand(8, 6))
    torch.testing.assert_close(field[..., 1], columns[:1].expand(16, 6))


@pytest.mark.parametrize("new", [(3, 4), (14, 9), (7, 5), (1, 1), (40, 3)])
def test_resample_is_torchs_bicubic_with_antialiasing(new):
    table = torch.randn(1, 7, 5, 6)
    expected = F.interpolate(table.permute(0, 3, 1, 2), new, mode="bicubic", antialias=True)
    got = resample(table.flatten(1, 2), (7, 5), new)
    torch.testing.assert_close(got.unflatten(1, new).permute(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)


def test_resample_ignores_autocast():
    table = torch.randn(1, 12, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = resample(table, (3, 4), (5, 2))
    assert torch.equal(got, resample(table, (3, 4), (5, 2)))


def test_resample_downwards_averages():
    table = torch.tensor([1.0, -1.0]).repeat(32).reshape(1, 64, 1)  # the finest stripes
    assert resample(table, (8, 8), (8, 2)).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resample_in_half_precision_is_the_rounded_float32(dtype):
    table = torch.randn(1, 12, 4).to(dtype)
    got = resample(table, (3, 4), (5, 2))
    assert torch.equal(got, resample(table.float(), (3, 4), (5, 2)).to(dtype))


def test_resample_in_double_precision_has_exact_gradients():
    table = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: resample(table, (2, 3), (3, 5)), table)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_positions_tell_equal_patches_apart(make_vit, positions):
    model = make_vit(positions=positions)
    for size in ((12, 20), (6, 32)):
        tokens = model(torch.ones(1, 3, *size))[0]
        assert torch.cdist(tokens, tokens).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("token", [True, False])
def test_learned_positions_follow_the_image(make_vit, token):
    model = make_vit(class_token=token)
    other = make_vit(class_token=token, image_size=(24, 8))
    prefix, patches = model.pos_embed[:, : int(token)], model.pos_embed[:, int(token) :]
    moved = torch.cat([prefix, resample(patches, (4, 5), (8, 2))], dim=1)
    other.load_state_dict({**model.state_dict(), "pos_embed": moved})
    image = torch.randn(2, 3, 24, 8)
    torch.testing.assert_close(model(image), other(image))


def test_sincos_positions_follow_the_image(make_vit):
    model = make_vit(positions="sincos")
    image = torch.randn(2, 3, 24, 8)
    embedded = model.patch_embed(image) + sincos((8, 2), 16, model_grid=(4, 5))
    torch.testing.assert_close(model.features(image, [0])[0], model.blocks[0](embedded))
