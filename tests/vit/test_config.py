"""The config: what it stores, what it refuses, and that the model reads every field of it."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch

from mmm_vit import VisionTransformer, ViTConfig

LEAST = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 2, "heads": 2}
EFFECTS = {
    "image_size": (8, 16),
    "patch_size": (4, 2),
    "dim": 16,
    "depth": 3,
    "heads": 4,
    "channels": 1,
    "mlp_ratio": 3.0,
    "activation": "quick_gelu",
    "qkv_bias": False,
    "patch_bias": False,
    "class_token": True,
    "registers": 2,
    "positions": "sincos",
    "layer_scale": 0.5,
    "pre_norm": True,
    "final_norm": False,
    "dropout": 0.5,
    "drop_path": 0.5,
    "norm_eps": 0.1,
}


def build(**fields) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(**{**LEAST, **fields}))


def shapes(model: VisionTransformer) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_every_field_is_tried():
    assert EFFECTS.keys() | {"prefix_positions"} == {field.name for field in dataclasses.fields(ViTConfig)}


@pytest.mark.parametrize("field", EFFECTS)
def test_field_changes_the_weights_or_the_output(field):
    before, after = build(), build(**{field: EFFECTS[field]})
    if shapes(before) == shapes(after):
        image = torch.randn(4, 3, 8, 8)
        assert not torch.allclose(before(image), after(image))


def test_prefix_positions_gives_the_prefix_positions():
    assert build(class_token=True, registers=2).pos_embed.shape == (1, 7, 8)
    assert build(class_token=True, registers=2, prefix_positions=False).pos_embed.shape == (1, 4, 8)


def test_depth_is_the_number_of_blocks():
    assert len(build(depth=5).blocks) == 5


def test_stochastic_depth_grows_linearly_from_the_first_block():
    rates = [block.drop_path for block in build(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert build(depth=1, drop_path=0.2).blocks[0].drop_path == 0.0


def test_layer_scale_starts_where_it_is_told():
    model = build(layer_scale=1)
    assert all(torch.equal(block.ls1.gamma, torch.ones(8)) for block in model.blocks)


def test_one_number_is_both_axes():
    assert ViTConfig(**LEAST) == ViTConfig(**{**LEAST, "image_size": (8, 8), "patch_size": (4, 4)})
    assert ViTConfig(**{**LEAST, "image_size": (8, 12)}).grid == (2, 3)


def test_json_and_back():
    config = ViTConfig(**LEAST, registers=2, class_token=True, layer_scale=1e-5)
    copy = ViTConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert copy == config
    assert hash(copy) == hash(config)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViTConfig(**LEAST).dim = 16


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_size": (8, 8, 8)}, "`image_size` must be a positive whole number or (y, x), got (8, 8, 8)."),
        ({"patch_size": 0}, "`patch_size` must be a positive whole number or (y, x), got 0."),
        ({"patch_size": (4, 2.0)}, "`patch_size` must be a positive whole number or (y, x), got (4, 2.0)."),
        (
            {"image_size": (9, 16)},
            "`image_size` must be divisible by patch_size = (4, 4), got (9, 16). Use (12, 16).",
        ),
        ({"dim": 0}, "`dim` must be a whole number from 1 up, got 0."),
        ({"depth": 2.5}, "`depth` must be a whole number from 1 up, got 2.5."),
        ({"heads": -1}, "`heads` must be a whole number from 1 up, got -1."),
        ({"channels": "3"}, "`channels` must be a whole number from 1 up, got 3."),
        ({"registers": -1}, "`registers` must be a whole number from 0 up, got -1."),
        ({"heads": 3}, "`dim` must be divisible by heads = 3, got 8. Use 9."),
        ({"mlp_ratio": 0}, "`mlp_ratio` must be above 0, got 0."),
        ({"norm_eps": -1e-6}, "`norm_eps` must be above 0, got -1e-06."),
        ({"dropout": 1.0}, "`dropout` must be in [0, 1), got 1.0."),
        ({"drop_path": -0.1}, "`drop_path` must be in [0, 1), got -0.1."),
        (
            {"activation": "relu"},
            "`activation` must be one of ('gelu', 'gelu_tanh', 'quick_gelu'), got 'relu'.",
        ),
        ({"positions": "rope"}, "`positions` must be one of ('learned', 'sincos'), got 'rope'."),
        (
            {"positions": "sincos", "dim": 6},
            "`dim` must be divisible by 4 for sin-cos positions, got 6. Use positions='learned'.",
        ),
    ],
)
def test_bad_values(fields, text):
    with pytest.raises(ValueError, match=f"^{re.escape(f'ViTConfig: {text}')}$"):
        ViTConfig(**{**LEAST, **fields})
