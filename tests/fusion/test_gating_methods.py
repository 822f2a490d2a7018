"""`gated`, `low_rank` and `matmul` against their formulas, written as slow loops over words and channels in float64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from mmm_fusion import ArgumentError, FusionMethod, InputError, create
from mmm_fusion.methods import LowRank

NAMES = ["gated", "low_rank", "matmul"]
LENGTHS = [(1, 1), (1, 5), (5, 1), (4, 4), (7, 17)]


def made(name: str, dropout: float = 0.3, **options: int) -> FusionMethod:
    method = create(name, 12, 10, heads=3, dropout=dropout, **options).double().eval()
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def inputs(l: int, p: int) -> tuple[Tensor, Tensor]:
    return torch.randn(3, l, 12).double(), torch.randn(3, p, 10).double()


def ragged(b: int, l: int) -> Tensor:
    """At least one real token a row, in any places."""
    mask = torch.rand(b, l) < 0.6
    mask[:, l // 2] = True
    return mask


def normed(norm: nn.RMSNorm, x: Tensor) -> list[float]:
    size = math.sqrt(sum(float(each) ** 2 for each in x) / len(x) + 1e-6)
    return [float(each) / size * float(weight) for each, weight in zip(x, norm.weight, strict=True)]


def mean(image: Tensor) -> list[float]:
    """Channel by channel; 0 where there is no token."""
    return [sum(float(v[c]) for v in image) / max(len(image), 1) for c in range(image.shape[1])]


def dot(weights: Tensor, x: list[float]) -> float:
    return sum(float(weight) * each for weight, each in zip(weights, x, strict=True))


def gated(method: FusionMethod, x: Tensor, image: Tensor) -> list[float]:
    x, v = normed(method.norm, x), mean(image)
    out = []
    for c in range(12):
        z = 1 / (1 + math.exp(-dot(method.image_gate.weight[c], v) - dot(method.text_gate.weight[c], x)))
        z = z if len(image) else 0.0
        seen, said = math.tanh(dot(method.image_proj.weight[c], v)), math.tanh(dot(method.text_proj.weight[c], x))
        out.append(z * seen + (1 - z) * said)
    return out


def low_rank(method: FusionMethod, x: Tensor, image: Tensor) -> list[float]:
    x, v = [*normed(method.norm, x), 1.0], [*mean(image), 1.0]
    text_factors = torch.cat([method.text_factors.weight, method.text_factors.bias[:, None]], dim=1)
    image_factors = torch.cat([method.image_factors.weight, method.image_one[:, None]], dim=1)
    out = [0.0] * 12
    for r in range(method.rank):
        for c in range(12):
            out[c] += dot(text_factors[r * 12 + c], x) * dot(image_factors[r * 12 + c], v)
    return out


def matmul(method: FusionMethod, x: Tensor, image: Tensor) -> list[float]:
    out = x.tolist()
    for v in image.tolist():
        key, value = ([dot(row, v) for row in layer.weight] for layer in (method.key, method.value))
        similarity = dot(x, key) / math.sqrt(12)
        out = [each + similarity * more / len(image) for each, more in zip(out, value, strict=True)]
    return out


@torch.no_grad()
def expected(method: FusionMethod, text: Tensor, image: Tensor) -> Tensor:
    """One row, all of it real."""
    formula = {"gated": gated, "low_rank": low_rank, "matmul": matmul}[method.name]
    return torch.tensor([formula(method, x, image) for x in text], dtype=torch.float64).view_as(text)


@pytest.mark.parametrize(("l", "p"), LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_formula(name: str, l: int, p: int) -> None:
    method = made(name)
    text, image = inputs(l, p)
    output = method(text, image)
    for row in range(3):
        torch.testing.assert_close(output.tokens[row], expected(method, text[row], image[row]))
    assert (output.text, output.mask) == (slice(0, l), None)


@pytest.mark.parametrize(("l", "p"), LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_formula_with_padding(name: str, l: int, p: int) -> None:
    method = made(name)
    text, image = inputs(l, p)
    text_mask, image_mask = ragged(3, l), ragged(3, p)
    image_mask[1] = False
    padded = [x.masked_fill(~mask[..., None], torch.nan) for x, mask in ((text, text_mask), (image, image_mask))]
    output = method(*padded, text_mask=text_mask, image_mask=image_mask)
    assert output.tokens.isfinite().all()
    for row in range(3):
        one = expected(method, text[row, text_mask[row]], image[row, image_mask[row]])
        torch.testing.assert_close(output.tokens[row, text_mask[row]], one)
    assert torch.equal(output.mask, text_mask)


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_rank_is_the_number_of_products(rank: int) -> None:
    method = made("low_rank", rank=rank)
    text, image = inputs(5, 4)
    torch.testing.assert_close(method(text, image).tokens[0], expected(method, text[0], image[0]))
    assert method.text_factors.out_features == method.image_factors.out_features == rank * 12
    assert made("low_rank").rank == 4


@pytest.mark.parametrize("rank", [0, -1, 1.0, "2", True, None])
def test_wrong_rank(rank: object) -> None:
    text = f"fusion method 'low_rank': `rank` must be an int of at least 1, got {rank!r}."
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}$"):
        LowRank(12, 10, heads=3, dropout=0.0, rank=rank)


def test_matmul_leaves_text_alone_exactly_as_it_is() -> None:
    method = made("matmul")
    text, image = inputs(5, 4)
    assert torch.equal(method(text, None).tokens, text)
    assert torch.equal(method(text, image, image_mask=torch.zeros(3, 4).bool()).tokens, text)


def test_gates_are_shut_where_there_is_no_image() -> None:
    method = made("gated")
    text, _ = inputs(5, 4)
    torch.testing.assert_close(method(text, None).tokens, method.text_proj(method.norm(text)).tanh())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_of_an_image_does_not_grow_with_it(name: str) -> None:
    method = made(name)
    small, large = (method.read(inputs(1, p)[1]) for p in (2, 50))
    assert small.prefix.shape == (3, 0, 12)
    assert [each.shape for each in small.context] == [each.shape for each in large.context]


@pytest.mark.parametrize("name", ["gated", "low_rank"])
def test_the_size_of_an_embedding_does_not_matter(name: str) -> None:
    """Words that are embedded small neither drown in the image nor drown it."""
    method = made(name)
    text, image = inputs(5, 4)
    torch.testing.assert_close(method(0.02 * text, image).tokens, method(text, image).tokens, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_word_and_image_are_both_heard_at_the_start(name: str) -> None:
    """As a model meets them first: the weights untrained, words of 0.02, tokens from a layer norm."""
    method = create(name, 64, 64, heads=4, dropout=0.0)
    text, image = 0.02 * torch.randn(8, 6, 64), nn.LayerNorm(64)(torch.randn(8, 1, 64) + torch.randn(8, 64, 64))
    out = method(text, image).tokens
    other_images = method(text, image.roll(1, dims=0)).tokens
    other_words = method(text.roll(1, dims=1), image).tokens
    for other in (other_images, other_words):
        assert (other - out).square().mean() > 0.01 * out.square().mean()
    assert method(text, None).tokens.std(dim=1).gt(0).all()  # and words alone


@pytest.mark.parametrize("name", NAMES)
def test_dropout_leaves_text_alone_as_it_is(name: str) -> None:
    method = made(name, dropout=0.5).train()
    text, _ = inputs(5, 4)
    assert torch.equal(method(text, None).tokens, method.eval()(text, None).tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_of_another_size(name: str) -> None:
    text, image = inputs(5, 12)
    message = (
        f"fusion method '{name}': `image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, "
        "got (3, 5). Leave class and register tokens out of `image`, or pass no grid."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        made(name)(text, image, image_grid=(3, 5))
