"""What a wrong image or layer is told."""

from __future__ import annotations

import re

import pytest
import torch

from mmm_vit import ShapeError


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (
            torch.zeros(3, 12, 20),
            ShapeError,
            "`image` must be (b, c, y, x), got (3, 12, 20). For one image (c, y, x), pass image[None].",
        ),
        (
            torch.zeros(2, 12, 20, 3),
            ShapeError,
            "`image` must be (b, c, y, x) with c = 3, got (2, 12, 20, 3). "
            "If it is (b, y, x, c), pass image.permute(0, 3, 1, 2).",
        ),
        (
            torch.zeros(1, 3, 13, 20),
            ShapeError,
            "`image` must have y and x divisible by patch_size = (3, 4), got (13, 20). Resize or pad it to (15, 20).",
        ),
        (
            torch.zeros(1, 3, 12, 0),
            ShapeError,
            "`image` must have y and x divisible by patch_size = (3, 4), got (12, 0). Resize or pad it to (12, 4).",
        ),
        (
            torch.zeros(1, 3, 12, 20, dtype=torch.uint8),
            TypeError,
            "`image` must be floating, got torch.uint8. For bytes, pass image.float() / 255.",
        ),
        (
            torch.zeros(1, 3, 12, 20, device="meta"),
            ValueError,
            "`image` must be on cpu as the weights, got meta. Pass image.to('cpu').",
        ),
    ],
)
@pytest.mark.parametrize("call", ["forward", "encode", "features"])
def test_wrong_image(make_vit, call, image, error, text):
    model = make_vit()
    arguments = (image, [0]) if call == "features" else (image,)
    with pytest.raises(error, match=f"^{re.escape(f'VisionTransformer: {text}')}$"):
        getattr(model, call)(*arguments)


def test_grid_of_an_image_that_does_not_fit(make_vit):
    with pytest.raises(ShapeError, match=r"got \(12, 3\)\. Resize or pad it to \(12, 4\)\.$"):
        make_vit().grid(12, 3)


@pytest.mark.parametrize("layers", [[3], [0, -4]])
def test_layers_that_the_model_has_not(make_vit, image, layers):
    text = (
        f"VisionTransformer.features: `layers` must be from -3 to 2 = depth - 1, got {layers}. "
        "The first block is 0, the last -1."
    )
    with pytest.raises(IndexError, match=f"^{re.escape(text)}$"):
        make_vit().features(image, layers)


def test_a_shape_error_is_a_value_error():
    assert issubclass(ShapeError, ValueError)
