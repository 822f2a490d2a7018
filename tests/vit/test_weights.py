"""`from_timm`: what it drops, renames and resamples, and what it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from mmm_vit import VisionTransformer, from_timm
from mmm_vit.positions import resample


def refuses(text: str, error: type[Exception] = ValueError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_classifier_is_dropped_and_the_rest_passed_on(timm_model):
    timm = timm_model("average_pool")
    weights = from_timm(timm.weights, timm.config)
    assert timm.weights.keys() - weights.keys() == {
        "head.weight",
        "head.bias",
        "fc_norm.weight",
        "fc_norm.bias",
    }
    assert all(weights[name] is timm.weights[name] for name in weights if name != "pos_embed")


def test_own_state_dict_passes(make_vit, image):
    model = make_vit(class_token=True, registers=2, layer_scale=0.1)
    copy = VisionTransformer(model.config).eval()
    copy.load_state_dict(from_timm(model.state_dict(), model.config))
    assert torch.equal(copy(image), model(image))


def test_deit_3_names_of_layer_scale(timm_model):
    timm = timm_model("registers")
    old = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): tensor for name, tensor in timm.weights.items()}
    assert "blocks.1.gamma_2" in old
    assert from_timm(old, timm.config).keys() == from_timm(timm.weights, timm.config).keys()


def test_distillation_token_is_a_register(timm_model):
    timm = timm_model("distilled")
    assert "dist_token" in timm.weights
    assert from_timm(timm.weights, timm.config)["reg_token"] is timm.weights["dist_token"]


def test_square_positions_for_a_rectangle(make_vit):
    source = make_vit(image_size=(12, 16), class_token=True)  # 4 × 4 patches
    config = dataclasses.replace(source.config, image_size=(6, 24))  # 2 × 6
    table = from_timm(source.state_dict(), config)["pos_embed"]
    assert torch.equal(table[:, :1], source.pos_embed[:, :1])
    assert torch.equal(table[:, 1:], resample(source.pos_embed[:, 1:], (4, 4), (2, 6)))


def test_rectangular_positions_need_their_grid(make_vit):
    source = make_vit()  # 4 × 5 patches
    config = dataclasses.replace(source.config, image_size=(9, 12))  # 3 × 3
    table = from_timm(source.state_dict(), config, grid=(4, 5))["pos_embed"]
    assert torch.equal(table, resample(source.pos_embed, (4, 5), (3, 3)))
    with refuses(
        "from_timm: `pos_embed` must be 0 + h·w positions with (h, w) = a square, got 20. "
        "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
    ):
        from_timm(source.state_dict(), config)


def test_grid_tells_grids_of_one_size_apart(make_vit):
    source = make_vit(image_size=(12, 16))  # 4 × 4
    config = dataclasses.replace(source.config, image_size=(6, 32))  # 2 × 8
    state = source.state_dict()
    assert torch.equal(from_timm(state, config)["pos_embed"], source.pos_embed)
    told = from_timm(state, config, grid=(4, 4))["pos_embed"]
    assert torch.equal(told, resample(source.pos_embed, (4, 4), (2, 8)))


def test_grid_that_the_positions_do_not_have(make_vit):
    model = make_vit(class_token=True)
    with refuses(
        "from_timm: `pos_embed` must be 1 + h·w positions with (h, w) = (3, 5), got 21. "
        "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
    ):
        from_timm(model.state_dict(), model.config, grid=(3, 5))


def test_prefix_positions_that_the_checkpoint_lacks(timm_model):
    timm = timm_model("registers")
    with refuses(
        "from_timm: `pos_embed` must be 4 + h·w positions with (h, w) = a square, got 16. "
        "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
    ):
        from_timm(timm.weights, dataclasses.replace(timm.config, prefix_positions=True))


def test_positions_of_the_prefix_alone(make_vit):
    model = make_vit(class_token=True)
    state = {**model.state_dict(), "pos_embed": torch.zeros(1, 1, 16)}
    with pytest.raises(ValueError, match=r"must be 1 \+ h·w positions with \(h, w\) = a square, got 1\."):
        from_timm(state, model.config)


def test_checkpoint_around_the_state_dict(make_vit):
    model = make_vit()
    with refuses(
        "from_timm: `state_dict` must map names to tensors, got 'model': OrderedDict. "
        "If that holds the weights, pass checkpoint['model'].",
        TypeError,
    ):
        from_timm({"model": model.state_dict()}, model.config)


def test_layers_that_this_encoder_has_not(make_vit):
    model = make_vit()
    extra = {f"{name}.weight": torch.ones(16) for name in ("attn_pool.norm", "blocks.0.attn.q_norm")}
    with refuses(
        "from_timm: `state_dict` must be of a plain ViT, got attn_pool.norm.weight, blocks.0.attn.q_norm.weight. "
        "This encoder has no such layers: choose another checkpoint."
    ):
        from_timm({**model.state_dict(), **extra}, model.config)


def test_many_layers_that_this_encoder_has_not(make_vit):
    model = make_vit()
    extra = {f"attn_pool.{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(ValueError, match=r"got attn_pool\.0, attn_pool\.1, attn_pool\.2 and 2 more\. This"):
        from_timm({**model.state_dict(), **extra}, model.config)


@pytest.mark.parametrize(
    ("config", "details", "fields"),
    [
        (
            {"class_token": True, "prefix_positions": False},
            "`cls_token` (1, 1, 16) for none",
            "class_token",
        ),
        ({"registers": 2, "prefix_positions": False}, "`reg_token` (1, 2, 16) for none", "registers"),
        ({"positions": "sincos"}, "`pos_embed` missing for (1, 20, 16)", "positions"),
        (
            {"final_norm": False},
            "`norm.bias` missing for (16,), `norm.weight` missing for (16,)",
            "final_norm",
        ),
        (
            {"pre_norm": True},
            "`norm_pre.bias` (16,) for none, `norm_pre.weight` (16,) for none",
            "pre_norm",
        ),
        ({"patch_bias": False}, "`patch_embed.proj.bias` missing for (16,)", "patch_bias, dim"),
        (
            {"channels": 1},
            "`patch_embed.proj.weight` (16, 1, 3, 4) for (16, 3, 3, 4)",
            "patch_size, channels, dim",
        ),
        (
            {"depth": 4, "layer_scale": 1.0},
            "`blocks.0.ls1.gamma` (16,) for none, `blocks.0.ls2.gamma` (16,) for none, "
            "`blocks.1.ls1.gamma` (16,) for none and 17 more",
            "depth, layer_scale, qkv_bias, mlp_ratio",
        ),
        (
            {"qkv_bias": False},
            "`blocks.0.attn.qkv.bias` missing for (48,), `blocks.1.attn.qkv.bias` missing for (48,), "
            "`blocks.2.attn.qkv.bias` missing for (48,)",
            "depth, qkv_bias",
        ),
        (
            {"mlp_ratio": 2.0},
            "`blocks.0.mlp.fc1.bias` (32,) for (64,), `blocks.0.mlp.fc1.weight` (32, 16) for (64, 16), "
            "`blocks.0.mlp.fc2.weight` (16, 32) for (16, 64) and 6 more",
            "depth, mlp_ratio",
        ),
    ],
)
def test_checkpoint_of_another_config(make_vit, config, details, fields):
    other, model = make_vit(**config), make_vit()
    with refuses(
        f"from_timm: `state_dict` must have the tensors of the config's model, got {details}. "
        f"Set as in the checkpoint: {fields}."
    ):
        from_timm(other.state_dict(), model.config)
