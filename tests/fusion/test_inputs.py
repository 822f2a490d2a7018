"""Wrong arguments and inputs: one clear error each."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from mmm_fusion import ArgumentError, FusionMethod, InputError, create
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import MLP, Concat, VisualExpert
from mmm_fusion.options import check_options
from mmm_fusion_film import Film

METHODS = sorted(method.name for method in [*mmm_fusion_methods(), Film])


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> FusionMethod:
    return create(request.param, 8, 6, heads=2, dropout=0.0)


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def inputs(**changed: Any) -> dict[str, Any]:
    return {"text": torch.randn(2, 5, 8), "image": torch.randn(2, 12, 6), **changed}


FLOAT_MASK = torch.full((2, 5), float("nan"))
BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "text too wide": ({"text": torch.randn(2, 5, 9)}, "`text` must be (b, l, dim) = (b, l, 8), got (2, 5, 9)."),
    "text too narrow": ({"text": torch.randn(2, 5, 7)}, "`text` must be (b, l, dim) = (b, l, 8), got (2, 5, 7)."),
    "text of token ids": (
        {"text": torch.zeros(2, 5, dtype=torch.long)},
        "`text` must be (b, l, dim) = (b, l, 8), got (2, 5).",
    ),
    "text of integers": (
        {"text": torch.zeros(2, 5, 8, dtype=torch.long)},
        "`text` must be float32 on cpu, as the method's weights, got int64 on cpu. Move one of them with .to().",
    ),
    "text in another dtype": (
        {"text": torch.randn(2, 5, 8).double()},
        "`text` must be float32 on cpu, as the method's weights, got float64 on cpu. Move one of them with .to().",
    ),
    "text on another device": (
        {"text": torch.randn(2, 5, 8, device="meta")},
        "`text` must be float32 on cpu, as the method's weights, got float32 on meta. Move one of them with .to().",
    ),
    "image too wide": (
        {"image": torch.randn(2, 12, 8)},
        "`image` must be (b, p, image_dim) = (2, p, 6), got (2, 12, 8).",
    ),
    "image of pixels": (
        {"image": torch.randn(2, 3, 16, 16)},
        "`image` must be (b, p, image_dim) = (2, p, 6), got (2, 3, 16, 16).",
    ),
    "image of another batch": (
        {"image": torch.randn(3, 12, 6)},
        "`image` must be (b, p, image_dim) = (2, p, 6), got (3, 12, 6).",
    ),
    "image in another dtype": (
        {"image": torch.randn(2, 12, 6).half()},
        "`image` must be float32 on cpu, as the method's weights, got float16 on cpu. Move one of them with .to().",
    ),
    "mask with NaN": (
        {"text_mask": FLOAT_MASK},
        "`text_mask` must be bool (b, l) = (2, 5) on cpu, got float32 on cpu, (2, 5). True marks a real token.",
    ),
    "mask of integers": (
        {"text_mask": torch.ones(2, 5, dtype=torch.long)},
        "`text_mask` must be bool (b, l) = (2, 5) on cpu, got int64 on cpu, (2, 5). True marks a real token.",
    ),
    "mask of another length": (
        {"text_mask": torch.ones(2, 6, dtype=torch.bool)},
        "`text_mask` must be bool (b, l) = (2, 5) on cpu, got bool on cpu, (2, 6). True marks a real token.",
    ),
    "mask of one row": (
        {"text_mask": torch.ones(5, dtype=torch.bool)},
        "`text_mask` must be bool (b, l) = (2, 5) on cpu, got bool on cpu, (5,). True marks a real token.",
    ),
    "image mask of the text's length": (
        {"image_mask": torch.ones(2, 5, dtype=torch.bool)},
        "`image_mask` must be bool (b, p) = (2, 12) on cpu, got bool on cpu, (2, 5). True marks a real token.",
    ),
    "image mask with NaN": (
        {"image_mask": torch.full((2, 12), float("nan"))},
        "`image_mask` must be bool (b, p) = (2, 12) on cpu, got float32 on cpu, (2, 12). True marks a real token.",
    ),
    "image mask on another device": (
        {"image_mask": torch.ones(2, 12, dtype=torch.bool, device="meta")},
        "`image_mask` must be bool (b, p) = (2, 12) on cpu, got bool on meta, (2, 12). True marks a real token.",
    ),
    "grid of another size": (
        {"image_grid": (3, 5)},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got (3, 5). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "negative grid": (
        {"image_grid": (-3, -4)},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got (-3, -4). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid of three": (
        {"image_grid": (3, 2, 2)},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got (3, 2, 2). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid of floats": (
        {"image_grid": (3.0, 4.0)},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got (3.0, 4.0). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid of a bool": (
        {"image_grid": (True, 12)},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got (True, 12). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid of one number": (
        {"image_grid": 12},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got 12. "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid as text": (
        {"image_grid": "34"},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got '34'. "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "grid as a tensor": (
        {"image_grid": torch.tensor([3, 4])},
        "`image_grid` must be ints (h, w) with h * w = 12, the number of image tokens, got tensor([3, 4]). "
        "Leave class and register tokens out of `image`, or pass no grid.",
    ),
    "image mask without an image": (
        {"image": None, "image_mask": torch.ones(2, 12, dtype=torch.bool)},
        "`image_mask` must be None where `image` is None. Pass both or neither.",
    ),
    "grid without an image": (
        {"image": None, "image_grid": (3, 4)},
        "`image_grid` must be None where `image` is None. Pass both or neither.",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_wrong_inputs(case: str, method: FusionMethod) -> None:
    changed, text = BAD_INPUTS[case]
    with pytest.raises(InputError, match=exactly(f"fusion method '{method.name}': {text}")):
        method(**inputs(**changed))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # a norm of half precision input is slower, torch says once
@pytest.mark.parametrize("text_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("image_dtype", [torch.bfloat16, torch.float32])
def test_tokens_have_the_dtype_of_the_text_under_autocast(method, text_dtype, image_dtype) -> None:
    given = inputs()
    text, image = given["text"].to(text_dtype), given["image"].to(image_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert method(text, image, image_grid=(3, 4)).tokens.dtype == text_dtype


def test_a_large_channel_in_half_precision(method: FusionMethod) -> None:
    """The sum of the channel over the image tokens, 576 * 120, is more than float16 holds."""
    for parameter in method.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    text, image = torch.randn(2, 5, 8), torch.randn(2, 576, 6)
    image[..., 3] = 120
    expected = method(text, image, image_grid=(24, 24)).tokens
    got = method.half()(text.half(), image.half(), image_grid=(24, 24)).tokens.float()
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_right_inputs(method: FusionMethod) -> None:
    output = method(**inputs(image_grid=(3, 4), image_mask=torch.ones(2, 12, dtype=torch.bool)))
    assert output.tokens[:, output.text].shape == (2, 5, 8)


def test_inputs_are_left_as_they_are(method: FusionMethod) -> None:
    given = inputs(
        text_mask=torch.tensor([[True] * 5, [True, False, True, False, False]]),
        image_mask=torch.tensor([[True] * 12, [False] * 12]),
    )
    before = {name: value.clone() for name, value in given.items()}
    method(**given)
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_padding_gets_no_gradient(method: FusionMethod) -> None:
    text_mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    text, image = (x.requires_grad_() for x in inputs().values())
    output = method(text, image, text_mask=text_mask)
    output.tokens[:, output.text][text_mask].sum().backward()
    assert isinstance(text.grad, Tensor)
    assert torch.equal(text.grad.any(dim=2), text_mask)


def test_rows_of_padding_alone(method: FusionMethod) -> None:
    text_mask = torch.tensor([[True] * 5, [False] * 5])
    image_mask = torch.tensor([[True] * 12, [False] * 12])
    for masks in ({"text_mask": text_mask}, {"text_mask": text_mask, "image_mask": image_mask}):
        output = method(**inputs(**masks))
        assert output.tokens.isfinite().all()
        assert torch.equal(output.mask[:, output.text], text_mask)


def test_shapes_can_be_had_on_the_meta_device(method: FusionMethod) -> None:
    method.to("meta")
    text, image = torch.randn(2, 5, 8, device="meta"), torch.randn(2, 12, 6, device="meta")
    assert method(text, image).tokens.shape == method(text, image, text_mask=text[..., 0] > 0).tokens.shape
    with pytest.raises(InputError, match="`text` must be float32 on meta, as the method's weights, got float64 on"):
        method(text.double(), image)


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no width": ({"dim": 0}, "`dim` must be an int of at least 1, got 0."),
    "width as a float": ({"dim": 8.0}, "`dim` must be an int of at least 1, got 8.0."),
    "no image width": ({"image_dim": -1}, "`image_dim` must be an int of at least 1, got -1."),
    "no heads": ({"heads": 0}, "`heads` must be an int of at least 1, got 0."),
    "heads as a bool": ({"heads": True}, "`heads` must be an int of at least 1, got True."),
    "heads that do not divide": (
        {"heads": 3},
        "`heads` must divide dim = 8, got 3. Choose one of 1, 2, 4, 8.",
    ),
    "dropout of all": ({"dropout": 1.0}, "`dropout` must be a number from 0 to below 1, got 1.0."),
    "dropout below 0": ({"dropout": -0.1}, "`dropout` must be a number from 0 to below 1, got -0.1."),
    "dropout of NaN": ({"dropout": float("nan")}, "`dropout` must be a number from 0 to below 1, got nan."),
    "dropout as text": ({"dropout": "0.1"}, "`dropout` must be a number from 0 to below 1, got '0.1'."),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_wrong_arguments(case: str, name: str) -> None:
    changed, text = BAD_ARGUMENTS[case]
    with pytest.raises(ArgumentError, match=exactly(f"fusion method '{name}': {text}")):
        create(name, **{"dim": 8, "image_dim": 6, "heads": 2, "dropout": 0.0, **changed})


@pytest.mark.parametrize("method", [MLP, VisualExpert])
@pytest.mark.parametrize(
    "ratio", [0, -1.0, 0.1, float("nan"), float("inf"), pytest.param(10**400, id="huge"), "4", True, None]
)
def test_wrong_ratio(method: type[FusionMethod], ratio: object) -> None:
    what = f"`ratio` must be a number with ratio * dim from 1 to below 2**31, got {ratio!r}."
    text = f"fusion method '{method.name}': {what}"
    with pytest.raises(ArgumentError, match=exactly(text)):
        method(8, 6, heads=2, dropout=0.0, ratio=ratio)


@pytest.mark.parametrize(
    ("name", "option", "text"),
    [
        ("visual_expert", "ratoi", "has no option 'ratoi'. Did you mean 'ratio'? Its options: ratio."),
        ("mlp", "depth", "has no option 'depth'. Its options: ratio."),
        ("add", "ratio", "has no option 'ratio'. It has no options of its own."),
    ],
)
def test_unknown_option(name: str, option: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=exactly(f"fusion method '{name}' {text}")):
        create(name, 8, 6, heads=2, dropout=0.0, **{option: 1})


class Options(Concat):
    """A method with options of every kind."""

    name = "options"

    def __init__(
        self, dim, image_dim, *, heads, dropout, ratio=1.0, depth=2, gated=False, pooling="mean", grid=None, sizes=(1,)
    ):
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("ratio", "big", "option 'ratio' must be a number, as its default 1.0, got 'big'."),
        ("ratio", True, "option 'ratio' must be a number, as its default 1.0, got True."),
        ("ratio", None, "option 'ratio' must be a number, as its default 1.0, got None."),
        ("ratio", float("nan"), "option 'ratio' must be a finite number, as its default 1.0, got nan."),
        ("ratio", float("-inf"), "option 'ratio' must be a finite number, as its default 1.0, got -inf."),
        ("depth", 2.0, "option 'depth' must be an int, as its default 2, got 2.0."),
        ("depth", True, "option 'depth' must be an int, as its default 2, got True."),
        ("gated", 1, "option 'gated' must be True or False, as its default False, got 1."),
        ("pooling", 3, "option 'pooling' must be a string, as its default 'mean', got 3."),
    ],
)
def test_option_of_the_wrong_type(option: str, value: object, text: str) -> None:
    with pytest.raises(ArgumentError, match=exactly(f"fusion method 'options': {text}")):
        check_options(Options, {option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 2, "depth": 10**400, "gated": True, "pooling": "max"},
        {"ratio": 10**400, "grid": "any", "sizes": 3},  # the default's type tells nothing, or not enough
    ],
)
def test_option_of_the_right_type(options: dict[str, Any]) -> None:
    check_options(Options, options)


def test_create_looks_at_the_types_of_options() -> None:
    text = "fusion method 'mlp': option 'ratio' must be a number, as its default 1.0, got 'big'."
    with pytest.raises(ArgumentError, match=exactly(text)):
        create("mlp", 8, 6, heads=2, dropout=0.0, ratio="big")


def test_a_method_that_takes_any_option_has_the_named_ones_checked() -> None:
    class AnyOption(Concat):
        name = "any"

        def __init__(self, dim, image_dim, *, heads, dropout, depth=1, **others):
            super().__init__(dim, image_dim, heads=heads, dropout=dropout)

    check_options(AnyOption, {"whatever": "x"})
    with pytest.raises(ArgumentError, match="option 'depth' must be an int"):
        check_options(AnyOption, {"whatever": "x", "depth": "x"})
