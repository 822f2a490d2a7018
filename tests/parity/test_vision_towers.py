"""Vision towers that transformers builds with random weights, in our encoder: outputs are equal to 1e-4."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mmm_vit import VisionTransformer, config_from_transformers, from_transformers

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 52,
    "image_size": 20,
    "patch_size": 4,
}
RECTANGLE = {**SIZES, "image_size": (12, 20), "patch_size": (3, 4), "num_channels": 1}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 40}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "projection_size": 24}
TOWERS = {
    "vit": (ViTModel, ViTConfig(**SIZES)),
    "vit of other parts": (ViTModel, ViTConfig(**SIZES, qkv_bias=False, hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "vit of a rectangle": (ViTModel, ViTConfig(**RECTANGLE)),
    "deit": (DeiTModel, DeiTConfig(**SIZES)),
    "deit of a rectangle": (DeiTModel, DeiTConfig(**RECTANGLE)),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SIZES)),
    "clip with the exact gelu": (CLIPVisionModel, CLIPVisionConfig(**SIZES, hidden_act="gelu")),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SIZES)),
    "siglip without head": (SiglipVisionModel, SiglipVisionConfig(**SIZES, vision_use_head=False)),
}
AROUND = {
    "vit": (ViTForImageClassification, ViTConfig(**SIZES)),
    "deit": (DeiTForImageClassificationWithTeacher, DeiTConfig(**SIZES)),
    "clip_projection": (CLIPVisionModelWithProjection, CLIPVisionConfig(**SIZES)),
    "clip": (CLIPModel, CLIPConfig(vision_config=SIZES, text_config=TEXT)),
    "siglip": (SiglipModel, SiglipConfig(vision_config=SIZES, text_config=TEXT)),
}


def build(cls: type[PreTrainedModel], config) -> PreTrainedModel:
    """A model all of whose parameters are random, so that none can be forgotten unseen."""
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return model


def loaded(config: dict, state_dict: dict, **changes) -> VisionTransformer:
    ours = dataclasses.replace(config_from_transformers(config), **changes)
    model = VisionTransformer(ours).eval()
    model.load_state_dict(from_transformers(state_dict, ours))
    return model


def images(config) -> torch.Tensor:
    y, x = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    return torch.randn(2, config.num_channels, y, x, generator=torch.Generator().manual_seed(1))


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_tokens(name):
    theirs = build(*TOWERS[name])
    ours, image = loaded(theirs.config.to_dict(), theirs.state_dict()), images(theirs.config)
    with torch.inference_mode():
        expected = theirs(image).last_hidden_state
        tokens = ours.encode(image)
    assert_same(torch.cat([tokens.prefix, tokens.patches], dim=1), expected)
    assert_same(ours(image), expected[:, ours.config.prefix_length :])  # by the kernels of a training


@pytest.mark.parametrize("name", ["vit", "clip", "siglip"])
def test_features_are_their_hidden_states(name):
    theirs = build(*TOWERS[name])
    ours, image = loaded(theirs.config.to_dict(), theirs.state_dict()), images(theirs.config)
    with torch.inference_mode():
        hidden = theirs(image, output_hidden_states=True).hidden_states
        features = ours.features(image, [0, -2])  # -2 is the layer that LLaVA reads of CLIP
    assert_same(features[0], hidden[1][:, ours.config.prefix_length :])
    assert_same(features[1], hidden[-2][:, ours.config.prefix_length :])


def test_clips_pooled_token_is_the_class_token_with_the_final_norm():
    theirs = build(*TOWERS["clip"])
    ours = loaded(theirs.config.to_dict(), theirs.state_dict(), final_norm=True)
    image = images(theirs.config)
    with torch.inference_mode():
        assert_same(ours.encode(image).prefix[:, 0], theirs(image).pooler_output)


@pytest.mark.parametrize("name", AROUND)
def test_a_saved_model_around_a_tower(name, tmp_path):
    theirs = build(*AROUND[name])
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tower = getattr(theirs, "vision_model", None) or theirs.base_model
    image = images(tower.config)
    with torch.inference_mode():
        expected = tower(image).last_hidden_state
        for state_dict in (theirs.state_dict(), load_file(tmp_path / "model.safetensors")):
            ours = loaded(config, state_dict)
            assert_same(ours(image), expected[:, ours.config.prefix_length :])


@pytest.mark.parametrize("cls", [ViTConfig, DeiTConfig, CLIPVisionConfig, SiglipVisionConfig])
def test_defaults_are_theirs(cls):
    assert config_from_transformers({"model_type": cls.model_type}) == config_from_transformers(cls().to_dict())


@pytest.mark.parametrize("name", ["vit", "deit", "clip"])
def test_gradients(name):
    theirs = build(*TOWERS[name])
    ours, image = loaded(theirs.config.to_dict(), theirs.state_dict()), images(theirs.config)
    out = theirs(image).last_hidden_state[:, ours.config.prefix_length :]
    (out * out.detach().cos()).sum().backward()
    mine = ours(image)
    (mine * mine.detach().cos()).sum().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    expected = from_transformers({**theirs.state_dict(), **grads}, ours.config)
    for key, parameter in ours.named_parameters():
        assert_same(parameter.grad, expected[key])
