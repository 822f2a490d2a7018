"""The encoder gives what timm gives, for the same weights and images."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmm_vit import VisionTransformer, from_timm

NAMES = ["average_pool", "class_token", "distilled", "rectangle", "registers", "registers_with_positions"]


def load(config, weights) -> VisionTransformer:
    model = VisionTransformer(config).eval()
    model.load_state_dict(from_timm(weights, config))
    return model


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_timms_at_every_image_size(timm_model, name):
    timm = timm_model(name)
    model = load(timm.config, timm.weights)
    assert timm.image.keys() > {"own"}
    for case, image in timm.image.items():
        tokens = model.encode(image)
        assert tokens.prefix.shape[1] == timm.config.prefix_length
        assert_same(torch.cat([tokens.prefix, tokens.patches], dim=1), timm.tokens[case])
        assert_same(model(image), timm.tokens[case][:, timm.config.prefix_length :])


@pytest.mark.parametrize("name", NAMES)
def test_features_are_timms_intermediates(timm_model, name):
    timm = timm_model(name)
    model = load(timm.config, timm.weights)
    got = model.features(timm.image["own"], range(timm.config.depth))
    for i, layer in enumerate(got):
        assert_same(layer, timm.layer[f"{i}"])


def test_positions_resampled_on_loading_are_timms(timm_model):
    timm = timm_model("class_token")
    config = dataclasses.replace(timm.config, image_size=24)
    model = load(config, timm.weights)
    assert model.pos_embed.shape == (1, 1 + 6 * 6, config.dim)
    assert_same(model(timm.image["larger"]), timm.tokens["larger"][:, 1:])


@pytest.mark.parametrize("name", ["class_token", "registers"])
def test_timm_names_are_our_names(timm_model, name):
    timm = timm_model(name)
    ours = VisionTransformer(timm.config).state_dict()
    theirs = {key: tensor for key, tensor in timm.weights.items() if not key.startswith("head.")}
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
