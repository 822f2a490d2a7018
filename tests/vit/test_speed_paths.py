"""Without derivatives other kernels may run: they give what those of the training give, and go when they must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmm_vit import attention, linear
from mmm_vit.linear import Linear

WITHOUT = [torch.no_grad, torch.inference_mode]
OPTIONS = [{}, {"class_token": True, "registers": 2, "layer_scale": 0.5, "qkv_bias": False}, {"heads": 4}]


@pytest.fixture
def products(monkeypatch):
    """Counts the calls of oneDNN's product."""
    calls = []
    if linear.PRODUCT is not None:
        product = linear.PRODUCT
        monkeypatch.setattr(linear, "PRODUCT", lambda *arguments: (calls.append(None), product(*arguments))[1])
    return calls


@pytest.mark.parametrize("mode", WITHOUT)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(12, 20), (3, 4), (24, 8)])
def test_output_is_that_with_derivatives(make_vit, products, mode, options, size):
    model, image = make_vit(**options), torch.randn(3, 3, *size)
    expected = model(image)
    assert products == []
    with mode():
        got = model(image)
    assert len(products) == (0 if linear.PRODUCT is None else 1 + 4 * model.config.depth)
    torch.testing.assert_close(got, expected.detach())


def test_weights_that_change_by_any_way_are_seen(make_vit, image):
    model, other = make_vit(), make_vit(layer_scale=None)
    with torch.inference_mode():
        model(image)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(image), other(image))


def test_no_row_touches_another(make_vit, image):
    spoilt = image.clone()
    spoilt[0] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        model = make_vit().to(dtype)
        with torch.inference_mode():
            tokens = model(spoilt)
            assert tokens[0].isnan().all()
            assert torch.equal(tokens[1], model(image)[1])


@pytest.mark.parametrize("shape", [(6,), (5, 6), (0, 6), (2, 3, 6), (2, 0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_takes_any_shape_and_stride(shape, bias):
    layer = Linear(6, 5, bias=bias)
    x = torch.randn(*shape)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        for each in (x, strided):
            torch.testing.assert_close(layer(each), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_linear_keeps_other_dtypes_as_they_are(products, dtype):
    layer = Linear(6, 5).to(dtype)
    x = torch.randn(2, 6, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert products == []


def test_linear_in_bfloat16_is_the_rounded_float32():
    layer = Linear(64, 9).bfloat16()
    x = torch.randn(7, 64).bfloat16()
    with torch.no_grad():
        exact = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
        torch.testing.assert_close(layer(x).float(), exact, rtol=2**-8, atol=1e-6)


def test_linear_of_two_dtypes_fails_as_torchs():
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"same dtype|expected m"):
        Linear(6, 5)(torch.randn(2, 6).bfloat16())


def test_linear_under_autocast():
    layer, x = Linear(6, 5), torch.randn(2, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_gradients_of_a_frozen_model_reach_the_image(make_vit, image):
    model = make_vit().requires_grad_(False)
    image.requires_grad_()
    model(image).sum().backward()
    assert image.grad.ne(0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on the way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_derivatives_without_backward_ones(make_vit, image, dtype):
    model, image = make_vit().to(dtype), image.to(dtype)
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # torch's fused one has none
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(image, torch.ones_like(image)))).tangent
    assert tangent.ne(0).any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_rows():
    layer, x = Linear(6, 5), torch.randn(3, 2, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


def test_hooks_of_the_layers_run(make_vit, image):
    model, seen = make_vit(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_: seen.append(None))
    with torch.inference_mode():
        model(image)
    assert len(seen) == 4 * model.config.depth


@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (1, 1, 1, 4), (3, 2, 65, 5), (0, 2, 7, 4), (1, 2, 1030, 4)])
@pytest.mark.parametrize("scores", [1, 2**21])
def test_attention_in_bfloat16_is_near_the_exact_one(monkeypatch, shape, scores):
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        got = attention.attend(*(each.bfloat16() for each in (q, k, v)))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_without_derivatives_is_near_float32(make_vit, options, image):
    model = make_vit(**options)
    exact = model(image)
    half = copy.deepcopy(model).bfloat16()
    with torch.inference_mode():
        assert (half(image).float() - exact).norm() < 0.03 * exact.norm()
