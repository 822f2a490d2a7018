"""`config_from_transformers` and `from_transformers`: forms of towers, their names, and what is refused."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from mmm_vit import VisionTransformer, ViTConfig, config_from_transformers, from_transformers
from mmm_vit.positions import resample

SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": [8, 12],
    "patch_size": 4,
}
CLIP_LAYER = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
VIT_LAYER = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
LAYOUTS = {
    "vit in memory": (
        "layers",
        {**VIT_LAYER, "attn.proj": "attention.o_proj"},
        [f"attention.{letter}_proj" for letter in "qkv"],
    ),
    "vit in a file": (
        "encoder.layer",
        {
            **VIT_LAYER,
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        [f"attention.attention.{word}" for word in ("query", "key", "value")],
    ),
    "clip": ("encoder.layers", CLIP_LAYER, [f"self_attn.{letter}_proj" for letter in "qkv"]),
}
TOPS = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
CLIP_TOPS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "norm": "post_layernorm",
}


def refuses(text: str):
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


def model_of(kind: str, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    config = dataclasses.replace(config_from_transformers({"model_type": kind, **SIZES}), **changes)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def theirs(model: VisionTransformer, layout: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The model's weights under the names that transformers gives them."""
    layers, parts, qkv = LAYOUTS[layout]
    tops = CLIP_TOPS if layout == "clip" else TOPS
    found = {}
    for name, tensor in model.state_dict().items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(\w+\.?\w*)\.(weight|bias)", name):
            block, part, kind = match.groups()
            if part == "attn.qkv":
                for own, piece in zip(qkv, tensor.chunk(3), strict=True):
                    found[f"{layers}.{block}.{own}.{kind}"] = piece
            else:
                found[f"{layers}.{block}.{parts.get(part, part)}.{kind}"] = tensor
        elif name in tops:
            flat = layout == "clip"  # an Embedding, and a vector
            found[tops[name]] = tensor.squeeze(0).squeeze(0) if flat else tensor
        else:
            top, kind = name.rsplit(".", 1)
            found[f"{tops[top]}.{kind}"] = tensor
    return {prefix + name: tensor for name, tensor in found.items()}


CASES = [
    ("vit", "vit in memory", ""),
    ("vit", "vit in a file", "vit."),
    ("deit", "vit in memory", "deit."),
    ("deit", "vit in a file", ""),
    ("clip_vision_model", "clip", ""),
    ("clip_vision_model", "clip", "vision_model."),
    ("siglip_vision_model", "clip", ""),
    ("siglip_vision_model", "clip", "vision_model."),
]


@pytest.mark.parametrize(("kind", "layout", "prefix"), CASES)
def test_weights_come_back(kind, layout, prefix):
    model = model_of(kind)
    state = theirs(model, layout, prefix)
    assert not state.keys() & model.state_dict().keys()
    weights = from_transformers(state, model.config)
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor)


HEADS = {
    "": ["classifier.weight", "cls_classifier.bias", "distillation_classifier.weight", "decoder.0.weight"],
    "vit.": ["vit.pooler.dense.weight", "vit.embeddings.mask_token", "classifier.bias"],
    "vision_model.": [
        "vision_model.head.probe",
        "vision_model.head.attention.in_proj_weight",
        "vision_model.embeddings.position_ids",
        "text_model.encoder.layers.0.mlp.fc1.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_projection.weight",
        "visual_projection.weight",
        "logit_scale",
        "logit_bias",
    ],
}


@pytest.mark.parametrize("prefix", HEADS)
def test_heads_and_the_text_side_are_left_out(prefix):
    model = model_of("siglip_vision_model" if prefix == "vision_model." else "vit")
    state = theirs(model, "clip" if prefix == "vision_model." else "vit in a file", prefix)
    state |= {name: torch.zeros(2) for name in HEADS[prefix]}
    assert from_transformers(state, model.config).keys() == model.state_dict().keys()


def test_clips_last_norm_is_left_out_unless_asked_for():
    whole = model_of("clip_vision_model", final_norm=True)
    state = theirs(whole, "clip")
    assert "post_layernorm.weight" in state
    assert torch.equal(from_transformers(state, whole.config)["norm.weight"], whole.norm.weight)
    config = dataclasses.replace(whole.config, final_norm=False)
    assert "norm.weight" not in from_transformers(state, config)


def test_positions_follow_the_config():
    model = model_of("deit")
    config = dataclasses.replace(model.config, image_size=(16, 8))
    table = from_transformers(theirs(model, "vit in memory"), config, grid=(2, 3))["pos_embed"]
    assert torch.equal(table[:, :2], model.pos_embed[:, :2])
    assert torch.equal(table[:, 2:], resample(model.pos_embed[:, 2:], (2, 3), (4, 2)))


def test_positions_of_another_grid_need_their_grid():
    model = model_of("siglip_vision_model")
    config = dataclasses.replace(model.config, image_size=(16, 8))
    with refuses(
        "from_transformers: `pos_embed` must be 0 + h·w positions with (h, w) = a square, got 6. "
        "Set class_token, registers and prefix_positions as in the checkpoint, or pass its grid=(h, w)."
    ):
        from_transformers(theirs(model, "clip"), config)


def test_names_that_no_tower_has():
    model = model_of("vit")
    extra = {f"encoder.layer.0.{name}": torch.ones(12) for name in ("layer_scale1.lambda1", "attention.q_norm.weight")}
    with refuses(
        "from_transformers: `state_dict` must be of a plain ViT, got blocks.0.attention.q_norm.weight, "
        "blocks.0.layer_scale1.lambda1. This encoder has no such layers: choose another checkpoint."
    ):
        from_transformers({**theirs(model, "vit in a file"), **extra}, model.config)


def test_queries_without_keys():
    model = model_of("vit")
    state = theirs(model, "vit in memory")
    del state["layers.1.attention.k_proj.bias"]
    with pytest.raises(ValueError, match=r"got blocks\.1\.attn\.q\.bias, blocks\.1\.attn\.v\.bias\. This encoder"):
        from_transformers(state, model.config)


def test_a_tower_of_another_form():
    state = theirs(model_of("clip_vision_model", final_norm=True), "clip")
    with refuses(
        "from_transformers: `state_dict` must have the tensors of the config's model, got `norm_pre.bias` (12,) for "
        "none, `norm_pre.weight` (12,) for none, `patch_embed.proj.bias` missing for (12,). "
        "Set as in the checkpoint: pre_norm, patch_bias, dim."
    ):
        from_transformers(state, model_of("vit").config)


def test_checkpoint_around_the_state_dict():
    model = model_of("vit")
    with pytest.raises(
        TypeError, match=r"^from_transformers: `state_dict` must map names to tensors, got 'model': dict"
    ):
        from_transformers({"model": theirs(model, "vit in memory")}, model.config)


def test_what_a_config_says():
    config = {**SIZES, "model_type": "vit", "qkv_bias": False, "layer_norm_eps": 0.1, "num_channels": 1, "id2label": {}}
    assert config_from_transformers(config) == ViTConfig(
        image_size=(8, 12),
        patch_size=4,
        dim=12,
        depth=2,
        heads=3,
        channels=1,
        mlp_ratio=20 / 12,
        qkv_bias=False,
        class_token=True,
        norm_eps=0.1,
    )


def test_what_a_config_leaves_out():
    base = {"image_size": 224, "patch_size": 16, "dim": 768, "depth": 12, "heads": 12}
    clip = {"class_token": True, "patch_bias": False, "pre_norm": True, "final_norm": False, "activation": "quick_gelu"}
    expected = {
        "vit": ViTConfig(**base, class_token=True, norm_eps=1e-12),
        "deit": ViTConfig(**base, class_token=True, registers=1, norm_eps=1e-12),
        "clip_vision_model": ViTConfig(**{**base, "patch_size": 32}, **clip, norm_eps=1e-5),
        "siglip_vision_model": ViTConfig(**base, activation="gelu_tanh", norm_eps=1e-6),
    }
    for kind, config in expected.items():
        assert config_from_transformers({"model_type": kind}) == config
    for kind in ("clip", "siglip"):
        assert config_from_transformers({"model_type": kind}) == expected[f"{kind}_vision_model"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_model_around_a_tower(kind):
    tower = {"model_type": f"{kind}_vision_model", **SIZES}
    whole = {"model_type": kind, "hidden_size": 99, "vision_config": tower, "text_config": {"hidden_size": 7}}
    assert config_from_transformers(whole) == config_from_transformers(tower)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("quick_gelu", "quick_gelu")],
)
def test_activations(theirs, ours):
    assert config_from_transformers({"model_type": "vit", "hidden_act": theirs}).activation == ours


def test_every_hidden_width_is_met():
    for dim in (1152, 384, 7):
        for hidden in range(1, 5000, 7):
            sizes = {"hidden_size": dim, "num_attention_heads": 1, "intermediate_size": hidden}
            assert int(dim * config_from_transformers({"model_type": "vit", **sizes}).mlp_ratio) == hidden


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"model_type": "dinov2"},
            "`model_type` must be one of clip, clip_vision_model, deit, siglip, siglip_vision_model, vit, "
            "got 'dinov2'. Pass the config of the vision tower itself, or choose another checkpoint.",
        ),
        (
            {"model_type": "vit", "hidden_act": "relu"},
            "`hidden_act` must be one of gelu, gelu_python, gelu_new, gelu_pytorch_tanh, quick_gelu, got 'relu'. "
            "This encoder has no other: choose another checkpoint.",
        ),
        (
            {"model_type": "vit", "head_dim": 32},
            "`head_dim` must be hidden_size / num_attention_heads = 64, got 32. "
            "This encoder has no other: choose another checkpoint.",
        ),
    ],
)
def test_towers_that_this_encoder_is_not(config, text):
    with refuses(f"config_from_transformers: {text}"):
        config_from_transformers(config)
