"""`cross_attention`, `perceiver` and `q_former` against their formulas, written as slow loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmm_fusion import ArgumentError, FusionMethod, create
from mmm_fusion.attention import Attention
from mmm_fusion.methods import CrossAttention, Perceiver, QFormer

SIZES = [(1, 1), (3, 1), (1, 3), (5, 4)]
LEARNED = {"perceiver": "latents", "q_former": "queries"}
CLASSES = {method.name: method for method in (CrossAttention, Perceiver, QFormer)}
NAMES = list(CLASSES)


def made(name: str, heads: int = 3, **options: Any) -> FusionMethod:
    """With weights that are large enough for attention to choose."""
    method = create(name, 12, 10, heads=heads, dropout=0.3, **options).double().eval()
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def inputs(l: int, p: int) -> tuple[Tensor, Tensor]:
    return torch.randn(3, l, 12).double(), torch.randn(3, p, 10).double()


def ragged(l: int) -> Tensor:
    """Padding right, left and between; the last row has none that is real."""
    mask = torch.ones(4, l, dtype=torch.bool)
    mask[0, l - 1 :], mask[1, : l // 2], mask[2, 1:-1:2], mask[3] = False, False, False, False
    return mask


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() * norm.weight


def attend(attention: Attention, x: Tensor, source: list[Tensor]) -> Tensor:
    """One position to all of `source`, head by head; zeros where it is empty."""
    dim, heads = len(x), attention.heads
    query, out = attention.to_q.weight @ x, torch.zeros(dim).double()
    keys = [attention.to_kv.weight[:dim] @ each for each in source]
    values = [attention.to_kv.weight[dim:] @ each for each in source]
    for head in range(heads if source else 0):
        at = slice(head * dim // heads, (head + 1) * dim // heads)
        scores = torch.stack([query[at] @ key[at] / math.sqrt(dim // heads) for key in keys])
        weights = scores.exp() / scores.exp().sum()
        out[at] = sum(weight * value[at] for weight, value in zip(weights, values, strict=True))
    return attention.out.weight @ out


def feed_forward(ffn: nn.Sequential, x: Tensor) -> Tensor:
    hidden = ffn[1].weight @ rms_norm(x, ffn[0]) + ffn[1].bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return ffn[3].weight @ hidden + ffn[3].bias


def cross_attention(method: CrossAttention, text: Tensor, image: Tensor) -> Tensor:
    """One row, all of it real: Flamingo's gated layer, position by position."""
    out = []
    for x in text:
        y = x + torch.tanh(method.attention_gate) * attend(method.attention, rms_norm(x, method.norm), list(image))
        out.append(y + torch.tanh(method.ffn_gate) * feed_forward(method.ffn, y))
    return torch.stack(out) if out else text


def perceiver(method: Perceiver, text: Tensor, image: Tensor) -> Tensor:
    """One row: Flamingo's resampler, latent by latent, and the text behind it."""
    if not len(image):
        return text
    image = image @ method.proj.weight.T + method.proj.bias
    latents = list(method.latents)
    for layer in method.layers:
        normed = [rms_norm(x, layer.norm_latents) for x in latents]
        source = [rms_norm(x, layer.norm_image) for x in image] + normed
        latents = [x + attend(layer.attention, q, source) for x, q in zip(latents, normed, strict=True)]
        latents = [x + feed_forward(layer.ffn, x) for x in latents]
    return torch.stack([*latents, *text])


def q_former(method: QFormer, text: Tensor, image: Tensor) -> Tensor:
    """One row: BLIP-2's queries, one by one, and the text behind them."""
    if not len(image):
        return text
    queries = list(method.queries)
    for layer in method.layers:
        normed = [rms_norm(x, layer.norm1) for x in queries]
        queries = [x + attend(layer.self_attention, q, normed) for x, q in zip(queries, normed, strict=True)]
        queries = [x + attend(layer.cross_attention, rms_norm(x, layer.norm2), list(image)) for x in queries]
        queries = [x + feed_forward(layer.ffn, x) for x in queries]
    projected = [method.proj.weight @ rms_norm(x, method.norm) + method.proj.bias for x in queries]
    return torch.stack([*projected, *text])


FORMULAS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "cross_attention": cross_attention,
    "perceiver": perceiver,
    "q_former": q_former,
}


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize(("l", "p"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_formula(name: str, l: int, p: int, heads: int) -> None:
    method = made(name, heads)
    text, image = inputs(l, p)
    output = method(text, image)
    for row in range(3):
        torch.testing.assert_close(output.tokens[row], FORMULAS[name](method, text[row], image[row]))
    k = 16 if name in LEARNED else 0
    assert (output.text, output.mask) == (slice(k, k + l), None)


@torch.no_grad()
@pytest.mark.parametrize("given", ["text", "image", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_formula_with_padding(name: str, given: str) -> None:
    """Only real tokens count, and a row without real image tokens is the text without an image."""
    method = made(name)
    text, image = torch.randn(4, 6, 12).double(), torch.randn(4, 5, 10).double()
    text_mask, image_mask = ragged(6), ragged(5)
    masks = {"text_mask": text_mask, "image_mask": image_mask}
    output = method(text, image, **{key: mask for key, mask in masks.items() if given in (key[:-5], "both")})
    assert output.tokens.isfinite().all()
    for row in range(4):
        words = text[row, text_mask[row]] if given != "image" else text[row]
        seen = image[row, image_mask[row]] if given != "text" else image[row]
        tokens = output.tokens[row] if output.mask is None else output.tokens[row, output.mask[row]]
        torch.testing.assert_close(tokens, FORMULAS[name](method, words, seen))


@torch.no_grad()
@pytest.mark.parametrize(("options", "layers"), [({}, 2), ({"depth": 1}, 1), ({"depth": 3}, 3)])
@pytest.mark.parametrize(("name", "count"), LEARNED.items())
def test_depth_and_number_of_learned_tokens(name: str, count: str, options: dict[str, int], layers: int) -> None:
    text, image = inputs(4, 7)
    method = made(name, **options, **{count: 5})
    assert len(method.layers) == layers
    output = method(text, image)
    assert output.text == slice(5, 9)
    torch.testing.assert_close(output.tokens[1], FORMULAS[name](method, text[1], image[1]))


@pytest.mark.parametrize("name", NAMES)
def test_ratio_is_the_width_of_the_feed_forward(name: str) -> None:
    for ratio, width in ((4.0, 48), (2.5, 30), (0.5, 6)):
        method = create(name, 12, 10, heads=3, dropout=0.0, ratio=ratio)
        widths = {module[1].out_features for module in method.modules() if isinstance(module, nn.Sequential)}
        assert widths == {width}


def test_cross_attention_starts_as_the_identity_on_text_and_can_leave_it() -> None:
    method = create("cross_attention", 12, 10, heads=3, dropout=0.0).double()
    text, image = inputs(5, 4)
    for pixels in (image, None):
        assert torch.equal(method(text, pixels).tokens, text)
    (method(text, image).tokens * torch.randn(3, 5, 12)).sum().backward()
    assert method.attention_gate.grad != 0
    assert method.ffn_gate.grad != 0


@torch.no_grad()
def test_cross_attention_adds_exactly_nothing_without_an_image() -> None:
    """The feed-forward layer acts on the text alone; with its gate shut, nothing is left."""
    method = made("cross_attention")
    method.ffn_gate.zero_()
    text, image = inputs(5, 4)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert torch.equal(method(text, image, image_mask=nothing).tokens, text)
    assert torch.equal(method(text, image[:, :0]).tokens, text)
    assert not torch.isclose(method(text, image).tokens, text).any(dim=2).all()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_read_once_for_many_texts(name: str) -> None:
    method = made(name)
    text, image = torch.randn(5, 4, 12).double(), torch.randn(3, 5, 10).double()
    mask, index = ragged(5)[1:], torch.tensor([1, 0, 2, 1, 1])  # the last image has no real token
    memory = method.read(image, image_mask=mask).rows(index)
    expected = method(text, image[index], image_mask=mask[index])
    torch.testing.assert_close(torch.cat([memory.prefix, method.join(text, memory)], dim=1), expected.tokens)
    assert memory.prefix.shape[1] == expected.text.start


def test_keys_and_values_are_made_in_read_alone() -> None:
    method = made("cross_attention")
    text, image = inputs(5, 4)
    calls: list[object] = []
    method.attention.to_kv.register_forward_hook(lambda *call: calls.append(call))
    memory = method.read(image)
    method.join(text, memory)
    method.join(text, memory)
    assert len(calls) == 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_an_image_keep_gradients_finite(name: str) -> None:
    method = made(name)
    text, image = inputs(5, 4)
    image_mask = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    method(text, image, image_mask=image_mask).tokens.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("name", "count"), LEARNED.items())
def test_learned_tokens_are_masked_where_there_is_no_image(name: str, count: str) -> None:
    method = made(name, **{count: 3})
    text, image = inputs(2, 4)
    image_mask = torch.tensor([[True] * 4, [False] * 4, [False, False, False, True]])
    output = method(text, image, image_mask=image_mask)
    assert output.mask.tolist() == [[True] * 5, [False] * 3 + [True] * 2, [True] * 5]
    for no_image in (None, image[:, :0]):
        output = method(text, no_image)
        assert torch.equal(output.tokens, text)
        assert (output.text, output.mask) == (slice(0, 2), None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("b", "l", "p"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)])
def test_empty_inputs(name: str, b: int, l: int, p: int) -> None:
    text, image = torch.randn(b, l, 12).double(), torch.randn(b, p, 10).double()
    k = 16 if name in LEARNED and p else 0
    for masks in ({}, {"text_mask": torch.ones(b, l).bool(), "image_mask": torch.ones(b, p).bool()}):
        output = made(name)(text, image, **masks)
        assert output.tokens.shape == (b, k + l, 12)
        assert output.text == slice(k, k + l)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name: str) -> None:
    method = made(name)
    text, image = inputs(5, 4)
    assert torch.equal(method(text, image).tokens, method(text, image).tokens)
    method.train()
    assert not torch.equal(method(text, image).tokens, method(text, image).tokens)


@pytest.mark.parametrize(("name", "branches"), [("cross_attention", 2), ("perceiver", 4), ("q_former", 6)])
def test_dropout_is_on_every_branch(name: str, branches: int) -> None:
    method = made(name)
    calls: list[object] = []
    for module in method.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.3
            module.register_forward_hook(lambda *call: calls.append(call))
    method(*inputs(5, 4))
    assert len(calls) == branches


@pytest.mark.parametrize("name", LEARNED)
def test_images_differ_at_the_start(name: str) -> None:
    """As the encoder gives them, of scale 1; the words around have a standard deviation of 0.02."""
    method = create(name, 96, 96, heads=4, dropout=0.0)
    text, image = torch.zeros(2, 1, 96), torch.randn(2, 64, 96)
    one, two = method(text, image).tokens[:, :16]
    assert 0.02 < one.std() < 2
    assert (one - two).std() > 0.1 * one.std()


def test_attention_to_nothing_is_zero_whatever_stands_there() -> None:
    attention = Attention(12, 10, heads=3).double()
    x, mask = torch.randn(4, 2, 12).double(), ragged(5)
    out = attention(x, *attention.keys_values(torch.randn(4, 5, 10).double()), mask)
    assert not out[3].any()
    assert out[:3].all()
    assert not attention(x, *attention.keys_values(torch.randn(4, 0, 10).double())).any()


def test_attention_chooses_at_the_start() -> None:
    """Scores of tokens of scale 1 are of scale 3, their values of scale 1."""
    attention = Attention(96, 48, heads=4)
    q = attention.to_q(torch.randn(1, 200, 96)).unflatten(2, (4, 24)).transpose(1, 2)
    k, v = attention.keys_values(torch.randn(1, 200, 48))
    for values in (q @ k.mT / math.sqrt(24) / 3, v):
        assert 0.8 < values.std() < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_has_the_dtype_of_the_image_under_autocast(name: str, dtype: torch.dtype) -> None:
    method = create(name, 12, 10, heads=3, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.read(torch.randn(2, 5, 10, dtype=dtype)).prefix.dtype == dtype


# The class itself, since `create` checks the types of options before the method does.
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
@pytest.mark.parametrize(("name", "option"), [*LEARNED.items(), ("perceiver", "depth"), ("q_former", "depth")])
def test_counts_must_be_whole_and_positive(name: str, option: str, value: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        CLASSES[name](12, 10, heads=3, dropout=0.0, **{option: value})
    assert str(caught.value) == f"fusion method '{name}': `{option}` must be an int of at least 1, got {value!r}."


@pytest.mark.parametrize("value", [0, 0.05, float("inf"), float("nan"), "4", True])
@pytest.mark.parametrize("name", NAMES)
def test_ratio_must_leave_a_width(name: str, value: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        CLASSES[name](12, 10, heads=3, dropout=0.0, ratio=value)
    assert str(caught.value) == (
        f"fusion method '{name}': `ratio` must be a number with ratio * dim from 1 to below 2**31, got {value!r}."
    )
