"""Each method against its formula, written as slow loops over rows, positions and heads in float64."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d

from mmm_fusion import FusionMethod, create
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import VisualExpert
from mmm_fusion.methods.add import shares_of

METHODS = ["film", *(method.name for method in mmm_fusion_methods())]
LENGTHS = [(1, 1), (1, 5), (5, 1), (4, 4), (5, 3), (3, 5), (4, 12), (7, 17), (17, 7)]


def made(name: str, dim: int = 12, image_dim: int = 10, heads: int = 3, **options: float) -> FusionMethod:
    return create(name, dim, image_dim, heads=heads, dropout=0.3, **options).double().eval()


def inputs(l: int, p: int, dim: int = 12, image_dim: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(3, l, dim).double(), torch.randn(3, p, image_dim).double()


def ragged(b: int, l: int) -> Tensor:
    """At least one real token a row, in any places."""
    mask = torch.rand(b, l) < 0.6
    mask[:, l // 2] = True
    return mask


def windows(p: int) -> list[tuple[int, int]]:
    """The shares of p image tokens, one after the other: 1 window, 2, 4, ..., and at last p."""
    found, w = [], 1
    while True:
        w = min(w, p)
        found += [(i * p // w, math.ceil((i + 1) * p / w)) for i in range(w)]
        if w == p:
            return found
        w *= 2


def added(text: Tensor, image: Tensor) -> Tensor:
    """One row: to each text token the mean of its share of the projected image tokens."""
    shares = itertools.cycle(windows(len(image)))
    return torch.stack([word + image[slice(*next(shares))].mean(dim=0) for word in text])


def project(method: FusionMethod, image: Tensor) -> Tensor:
    """The projector of a method, from its weights."""
    layers = [method.proj] if isinstance(method.proj, nn.Linear) else [method.proj[0], method.proj[2]]
    for index, layer in enumerate(layers):
        if index:
            image = image * 0.5 * (1 + torch.erf(image / math.sqrt(2)))
        image = image @ layer.weight.T + layer.bias
    return image


@pytest.mark.parametrize(("l", "p"), LENGTHS)
@pytest.mark.parametrize("name", ["add", "mlp"])
def test_added_image(name: str, l: int, p: int) -> None:
    method = made(name)
    text, image = inputs(l, p)
    output = method(text, image)
    expected = torch.stack([added(text[row], project(method, image[row])) for row in range(3)])
    torch.testing.assert_close(output.tokens, expected)
    assert (output.text, output.mask) == (slice(0, l), None)


@pytest.mark.parametrize(("l", "p"), LENGTHS)
@pytest.mark.parametrize("name", ["add", "mlp"])
def test_added_image_with_padding(name: str, l: int, p: int) -> None:
    method = made(name)
    text, image = inputs(l, p)
    text_mask, image_mask = ragged(3, l), ragged(3, p)
    output = method(text, image, text_mask=text_mask, image_mask=image_mask)
    for row in range(3):
        expected = added(text[row, text_mask[row]], project(method, image[row, image_mask[row]]))
        torch.testing.assert_close(output.tokens[row, text_mask[row]], expected)
    assert torch.equal(output.mask, text_mask)


@pytest.mark.parametrize(("w", "p"), [(1, 1), (1, 6), (2, 2), (2, 7), (4, 5), (8, 13), (13, 13), (16, 16), (32, 64)])
def test_a_level_is_adaptive_average_pooling(w: int, p: int) -> None:
    method = made("add")
    text, image = inputs(3 * w, p)
    before = 2 ** (w - 1).bit_length() - 1  # windows of the levels with fewer
    pooled = adaptive_avg_pool1d(method.proj(image).mT, w).mT
    level = method(torch.zeros_like(text), image).tokens[:, before : before + w]
    torch.testing.assert_close(level, pooled)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65, 257])
def test_every_share_of_an_image(p: int) -> None:
    expected = windows(p) * 2  # and from the start again
    found = shares_of(torch.arange(1, len(expected) + 1)[None], torch.ones(1, p, dtype=torch.bool))[0]
    for share, (start, stop) in zip(found, expected, strict=True):
        assert share.nonzero().flatten().tolist() == list(range(start, stop))


def test_shares_of_millions_of_tokens_are_exact() -> None:
    p = 3 * 2**20 + 1
    last = 2**22 - 1  # where the last level begins, of a token a word
    number = torch.tensor([[1, 2, 3, last, last + 1, last + p // 2 + 1, last + p, last + p + 1]])
    spans = [(share.nonzero()[0].item(), share.sum().item()) for share in shares_of(number, torch.ones(1, p).bool())[0]]
    half = p // 2
    finest = -(-p // 2**21)
    assert spans[:3] == [(0, p), (0, half + 1), (half, half + 1)]
    assert spans[3] == (p - finest, finest)
    assert spans[4:] == [(0, 1), (half, 1), (p - 1, 1), (0, p)]


def test_the_mean_of_many_large_tokens_in_half_precision() -> None:
    """Their sum is more than float16 holds."""
    method = made("add").half()
    nn.init.constant_(method.proj.weight, 1)
    nn.init.zeros_(method.proj.bias)
    tokens = method(torch.zeros(1, 3, 12).half(), torch.full((1, 576, 10), 20.0).half()).tokens
    torch.testing.assert_close(tokens, torch.full_like(tokens, 200.0))


def test_the_shapes_of_the_original() -> None:
    output = create("mlp", 64, 64, heads=8, dropout=0.1)(torch.randn(1, 16, 64), torch.randn(1, 16, 64))
    assert output.tokens.shape == (1, 16, 64)


def test_ratio_is_the_width_of_the_projector() -> None:
    assert made("mlp").proj[0].out_features == 12
    assert made("mlp", ratio=2.5).proj[0].out_features == 30


@pytest.mark.parametrize(("l", "p"), LENGTHS)
def test_concat(l: int, p: int) -> None:
    method = made("concat")
    text, image = inputs(l, p)
    text_mask, image_mask = ragged(3, l), ragged(3, p)
    output = method(text, image, text_mask=text_mask)
    torch.testing.assert_close(output.tokens[:, :p], project(method, image))
    assert torch.equal(output.tokens[:, output.text][text_mask], text[text_mask])
    assert output.text == slice(p, p + l)
    assert torch.equal(output.mask, torch.cat([torch.ones(3, p, dtype=torch.bool), text_mask], dim=1))
    output = method(text, image, image_mask=image_mask)
    assert torch.equal(output.mask, torch.cat([image_mask, torch.ones(3, l, dtype=torch.bool)], dim=1))


@pytest.mark.parametrize("name", ["add", "mlp", "concat"])
def test_text_alone_passes_unchanged(name: str) -> None:
    text, image = inputs(5, 7)
    method = made(name)
    assert torch.equal(method(text, None).tokens, text)
    output = method(text, image, image_mask=torch.zeros(3, 7, dtype=torch.bool))
    assert torch.equal(output.tokens[:, output.text], text)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() * weight


def turned(x: Tensor, position: int) -> Tensor:
    """Channels i and i + d // 2 are the two parts of a number, turned by position * 10000^(-i / (d // 2))."""
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = position * 10_000 ** (-i / half)
        number = complex(x[i], x[i + half]) * cmath.exp(1j * angle)
        out[i], out[i + half] = number.real, number.imag
    return out


@torch.no_grad()
def visual_expert(method: VisualExpert, text: Tensor, image: Tensor) -> Tensor:
    """One row, all of it real: CogVLM's layer, position by position and head by head."""
    image = image @ method.proj.weight.T + method.proj.bias
    experts = [method.image_expert] * len(image) + [method.text_expert] * len(text)
    places = [0] * len(image) + list(range(1, len(text) + 1))
    x, d = torch.cat([image, text]), method.dim // method.heads
    qkv = [expert.to_qkv.weight @ rms_norm(one, expert.norm1.weight) for expert, one in zip(experts, x, strict=True)]
    out = []
    for i, expert in enumerate(experts):
        heads = []
        for head in range(method.heads):
            q, k, v = (slice((n * method.heads + head) * d, (n * method.heads + head + 1) * d) for n in range(3))
            query = turned(qkv[i][q], places[i])
            scores = [query @ turned(qkv[j][k], places[j]) / math.sqrt(d) for j in range(i + 1)]
            weights = torch.stack(scores).softmax(dim=0)
            heads.append(sum(weights[j] * qkv[j][v] for j in range(i + 1)))
        y = x[i] + expert.out.weight @ torch.cat(heads)
        hidden = expert.ffn[0].weight @ rms_norm(y, expert.norm2.weight) + expert.ffn[0].bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        out.append(y + expert.ffn[2].weight @ hidden + expert.ffn[2].bias)
    return torch.stack(out)


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize(("l", "p"), [(1, 1), (3, 1), (1, 3), (5, 4)])
def test_visual_expert(l: int, p: int, heads: int) -> None:
    method = made("visual_expert", heads=heads)
    assert isinstance(method, VisualExpert)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    text, image = inputs(l, p)
    output = method(text, image)
    for row in range(3):
        torch.testing.assert_close(output.tokens[row], visual_expert(method, text[row], image[row]))
    assert (output.text, output.mask) == (slice(p, p + l), None)


def test_visual_expert_with_padding() -> None:
    method = made("visual_expert")
    assert isinstance(method, VisualExpert)
    text, image = inputs(7, 5)
    text_mask, image_mask = ragged(3, 7), ragged(3, 5)
    image_mask[2] = False
    output = method(text, image, text_mask=text_mask, image_mask=image_mask)
    for row in range(3):
        expected = visual_expert(method, text[row, text_mask[row]], image[row, image_mask[row]])
        torch.testing.assert_close(output.tokens[row, output.mask[row]], expected)
    assert output.tokens.isfinite().all()


def test_image_positions_leave_the_weights_of_the_text_alone() -> None:
    method = made("visual_expert")
    text, image = inputs(5, 4)
    method(text, image).tokens[:, :4].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in method.text_expert.parameters())
    assert all(parameter.grad.any() for parameter in method.image_expert.parameters())


def test_heads_change_visual_expert() -> None:
    text, image = inputs(5, 4)
    one, three = made("visual_expert", heads=1), made("visual_expert", heads=3)
    three.load_state_dict(one.state_dict())
    assert not torch.allclose(one(text, image).tokens, three(text, image).tokens)


@pytest.mark.parametrize("name", METHODS)
def test_dropout_acts_in_training_only(name: str) -> None:
    method = made(name)
    for parameter in method.parameters():
        nn.init.normal_(parameter)
    text, image = inputs(5, 4)
    assert torch.equal(method(text, image).tokens, method(text, image).tokens)
    method.train()
    assert not torch.equal(method(text, image).tokens, method(text, image).tokens)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("b", "l", "p"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)])
def test_empty_inputs(name: str, b: int, l: int, p: int) -> None:
    text, image = torch.randn(b, l, 12).double(), torch.randn(b, p, 10).double()
    for masks in ({}, {"text_mask": torch.ones(b, l).bool(), "image_mask": torch.ones(b, p).bool()}):
        output = made(name)(text, image, **masks)
        assert output.tokens.shape[0::2] == (b, 12)
        assert output.tokens[:, output.text].shape == (b, l, 12)


def test_film_starts_as_the_identity_on_text_and_follows_its_formula() -> None:
    method = made("film")
    text, image = inputs(5, 4)
    assert torch.equal(method(text, image).tokens, text)
    nn.init.normal_(method.to_gamma_beta.weight)
    nn.init.normal_(method.to_gamma_beta.bias)
    image_mask = torch.tensor([[True, False, True, True], [True] * 4, [False] * 4])
    output = method(text, image, image_mask=image_mask)
    for row in range(2):
        weights = method.to_gamma_beta.weight @ image[row, image_mask[row]].mean(dim=0) + method.to_gamma_beta.bias
        torch.testing.assert_close(output.tokens[row], (1 + weights[:12]) * text[row] + weights[12:])
    assert torch.equal(output.tokens[2], text[2])
