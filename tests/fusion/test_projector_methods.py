"""`mobilevlm` and `ldp_v2` against their formulas, written as slow loops over cells and taps in float64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from mmm_fusion import FusionMethod, InputError, create

NAMES = ["mobilevlm", "ldp_v2"]
GRIDS = [(1, 1), (1, 2), (1, 7), (5, 1), (2, 2), (3, 3), (4, 4), (3, 4), (2, 5), (5, 6), (7, 3)]
Cell = tuple[int, int]
Picture = dict[Cell, Tensor]  # real cells alone


def made(name: str) -> FusionMethod:
    method = create(name, 12, 10, heads=3, dropout=0.3).double().eval()
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def inputs(p: int, b: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(b, 4, 12).double(), torch.randn(b, p, 10).double()


def holes(b: int, p: int) -> Tensor:
    """At least one real token a row, in any places; the first row has no hole."""
    mask = torch.rand(b, p) < 0.6
    mask[:, p // 2] = mask[0] = True
    return mask


def projected(method: FusionMethod, v: Tensor) -> Tensor:
    first, _, second = method.proj
    hidden = first.weight @ v + first.bias
    return second.weight @ (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))) + second.bias


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def around(weight: Tensor, picture: Picture, y: int, x: int) -> Tensor:
    """A depthwise filter, (dim, 1, 3, 3), at one cell: what is not real is not there."""
    total = torch.zeros(12).double()
    for i in range(3):
        for j in range(3):
            if (y + i - 1, x + j - 1) in picture:
                total = total + weight[:, 0, i, j] * picture[y + i - 1, x + j - 1]
    return total


def windows(picture: Picture) -> dict[Cell, list[Tensor]]:
    """The real cells of each window of 2 x 2 that has one, in raster order."""
    found: dict[Cell, list[Tensor]] = {}
    for y, x in sorted(picture):
        found.setdefault((y // 2, x // 2), []).append(picture[y, x])
    return dict(sorted(found.items()))


def mobilevlm(method: FusionMethod, picture: Picture) -> list[Tensor]:
    def branch(block: nn.Module, picture: Picture, y: int, x: int) -> Tensor:
        mixed = layer_norm(block.norm1, around(block.depthwise.weight, picture, y, x))
        return layer_norm(block.norm2, block.pointwise.weight @ mixed)

    mixed = {(y, x): v + branch(method.mix, picture, y, x) for (y, x), v in picture.items()}
    return [branch(method.shrink, mixed, 2 * y, 2 * x) for y, x in windows(mixed)]


def ldp_v2(method: FusionMethod, picture: Picture) -> list[Tensor]:
    pooled = {cell: torch.stack(inside).mean(dim=0) for cell, inside in windows(picture).items()}
    peg = method.position
    return [v + around(peg.weight, pooled, y, x) + peg.bias for (y, x), v in pooled.items()]


def expected(method: FusionMethod, image: Tensor, grid: Cell) -> Tensor:
    """The image's tokens of one row; a token of None is a hole."""
    cells = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    picture = {cell: projected(method, v) for cell, v in zip(cells, image, strict=True) if v is not None}
    return torch.stack({"mobilevlm": mobilevlm, "ldp_v2": ldp_v2}[method.name](method, picture))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_full_grid(name: str, grid: Cell) -> None:
    method = made(name)
    text, image = inputs(math.prod(grid))
    output = method(text, image, image_grid=grid)
    m = math.ceil(grid[0] / 2) * math.ceil(grid[1] / 2)
    for row in range(3):
        torch.testing.assert_close(output.tokens[row, :m], expected(method, image[row], grid))
    assert torch.equal(output.tokens[:, m:], text)
    assert (output.text, output.mask) == (slice(m, m + 4), None)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_grid_with_holes(name: str, grid: Cell) -> None:
    method = made(name)
    text, image = inputs(math.prod(grid))
    image_mask = holes(3, math.prod(grid))
    output = method(text, image.masked_fill(~image_mask[..., None], torch.nan), image_mask=image_mask, image_grid=grid)
    h, w = (math.ceil(size / 2) for size in grid)
    assert output.text == slice(h * w, h * w + 4)
    assert output.tokens.isfinite().all()
    for row in range(3):
        cells = [v if seen else None for v, seen in zip(image[row], image_mask[row], strict=True)]
        seen = output.mask[row, : h * w]
        torch.testing.assert_close(output.tokens[row, : h * w][seen], expected(method, cells, grid))
        inside = image_mask[row].unflatten(0, grid)
        for y in range(h):
            for x in range(w):
                assert seen[y * w + x] == inside[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].any()


@pytest.mark.parametrize("p", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_grid_the_tokens_are_a_line(name: str, p: int) -> None:
    method = made(name)
    text, image = inputs(p)
    output = method(text, image)
    assert output.text == slice(math.ceil(p / 2), math.ceil(p / 2) + 4)
    assert torch.equal(output.tokens, method(text, image, image_grid=(1, p)).tokens)


@pytest.mark.parametrize("p", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_grid_padding_moves_no_neighbours(name: str, p: int) -> None:
    method = made(name)
    text, image = inputs(p)
    image_mask = holes(3, p)
    output = method(text, image, image_mask=image_mask)
    prefix, seen = output.tokens[:, : output.text.start], output.mask[:, : output.text.start]
    for row in range(3):
        real = image[row, image_mask[row]]
        torch.testing.assert_close(prefix[row, seen[row]], expected(method, real, (1, len(real))))


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_padded_to_the_right_and_below_is_the_smaller_grid(name: str) -> None:
    method = made(name)
    text, image = inputs(15)
    alone = method(text, image, image_grid=(3, 5)).tokens
    padded, mask = torch.full((3, 6, 7, 10), torch.inf).double(), torch.zeros(3, 6, 7, dtype=torch.bool)
    padded[:, :3, :5], mask[:, :3, :5] = image.unflatten(1, (3, 5)), True
    output = method(text, padded.flatten(1, 2), image_mask=mask.flatten(1), image_grid=(6, 7))
    for row in range(3):
        torch.testing.assert_close(output.tokens[row, output.mask[row]], alone[row])


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_of_the_grid_matters(name: str) -> None:
    method = made(name)
    text, image = inputs(12)
    wide, high = (method(text, image, image_grid=grid).tokens for grid in ((2, 6), (6, 2)))
    assert wide.shape == high.shape
    assert not torch.allclose(wide, high)


@pytest.mark.parametrize("name", NAMES)
def test_text_alone_passes_unchanged(name: str) -> None:
    text, image = inputs(12)
    method = made(name)
    assert torch.equal(method(text, None).tokens, text)
    assert torch.equal(method(text, image[:, :0], image_mask=torch.ones(3, 0).bool()).tokens, text)
    output = method(text, image, image_mask=torch.zeros(3, 12).bool(), image_grid=(3, 4))
    assert not output.mask[:, : output.text.start].any()
    assert torch.equal(output.tokens[:, output.text], text)


@pytest.mark.parametrize("name", NAMES)
def test_each_tap_and_each_token_get_a_gradient(name: str) -> None:
    method = made(name)
    text, image = inputs(12)
    method(text, image.requires_grad_(), image_grid=(3, 4)).tokens.square().sum().backward()
    assert image.grad.all()
    assert all(parameter.grad.all() for parameter in method.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_holes_get_no_gradient(name: str) -> None:
    method = made(name)
    text, image = inputs(12)
    image_mask = holes(3, 12)
    output = method(text, image.requires_grad_(), image_mask=image_mask, image_grid=(3, 4))
    output.tokens[output.mask].square().sum().backward()
    assert torch.equal(image.grad.any(dim=2), image_mask)


@pytest.mark.parametrize("name", NAMES)
def test_one_compiled_method_takes_grids_of_every_shape(name: str) -> None:
    method = made(name)
    torch.compiler.reset()
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    for grid in ((3, 4), (5, 2), (4, 4)):
        text, image = inputs(math.prod(grid))
        image_mask = holes(3, math.prod(grid))
        for given in ({}, {"image_mask": image_mask}):
            output, plain = (call(text, image, image_grid=grid, **given) for call in (compiled, method))
            torch.testing.assert_close(output.tokens, plain.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_close_to_float64(name: str, dtype: torch.dtype) -> None:
    method = create(name, 12, 10, heads=3, dropout=0.0).double()
    text, image = inputs(15)
    given = {"image_mask": holes(3, 15), "image_grid": (3, 5)}
    exact = method(text, image, **given)
    tokens = method.to(dtype)(text.to(dtype), image.to(dtype), **given).tokens
    close = {"rtol": 0.05, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    assert tokens.dtype == dtype
    torch.testing.assert_close(tokens[exact.mask].double(), exact.tokens[exact.mask], **close)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_of_another_size(name: str) -> None:
    text, image = inputs(12)
    message = (
        f"fusion method '{name}': `image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, "
        "got (3, 5). Leave class and register tokens out of `image`, or pass no grid."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        made(name)(text, image, image_grid=(3, 5))
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        made(name).read(image, image_grid=(3, 5))
