"""Configs and state dicts of other libraries become those of a `MultiModalMamba`."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmm_block import CheckpointError, ConfigError, MultiModalMamba, MultiModalMambaBlock
from mmm_block.convert import assemble, from_mamba, from_vision_tower, with_encoder
from mmm_block.weights import own_tensors
from mmm_vit import VisionTransformer, ViTConfig

MAMBA_SSM = {"d_model": 6, "n_layer": 2, "vocab_size": 13, "ssm_cfg": {"d_state": 3}, "pad_vocab_size_multiple": 8}
MAMBA = {
    "model_type": "mamba",
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "vocab_size": 11,
    "state_size": 3,
    "intermediate_size": 18,
    "conv_kernel": 3,
    "time_step_rank": 4,
    "use_bias": True,
    "layer_norm_epsilon": 1e-2,
    "pad_token_id": 0,
    "eos_token_id": [2, 5],
}
FALCON = {**MAMBA, "model_type": "falcon_mamba", "mixer_rms_eps": 1e-2, "use_conv_bias": False}
IDS = torch.tensor([[1, 5, 3, 10, 2], [7, 7, 0, 1, 4]])


def weights_of(
    embedding: str = "backbone.embeddings",
    *,
    words: int = 11,
    dim: int = 6,
    inner: int = 18,
    n: int = 3,
    taps: int = 3,
    rank: int = 4,
    bias: bool = True,
    conv_bias: bool = True,
) -> dict[str, Tensor]:
    """A state dict of two Mamba layers, in the names that mamba_ssm and transformers share."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape) / max(1, shape[-1] if len(shape) > 1 else 1) ** 0.5

    weights = {f"{embedding}.weight": draw(words, dim) * 2, "backbone.norm_f.weight": 1 + draw(dim) / 4}
    for layer in range(2):
        weights |= {
            f"backbone.layers.{layer}.{name}": tensor
            for name, tensor in {
                "norm.weight": 1 + draw(dim) / 4,
                "mixer.in_proj.weight": draw(2 * inner, dim),
                "mixer.conv1d.weight": draw(inner, 1, taps),
                "mixer.x_proj.weight": draw(rank + 2 * n, inner),
                "mixer.dt_proj.weight": draw(inner, rank),
                "mixer.dt_proj.bias": draw(inner),
                "mixer.A_log": draw(inner, n),
                "mixer.D": draw(inner),
                "mixer.out_proj.weight": draw(dim, inner),
            }.items()
        }
        if bias:
            weights[f"backbone.layers.{layer}.mixer.in_proj.bias"] = draw(2 * inner)
            weights[f"backbone.layers.{layer}.mixer.out_proj.bias"] = draw(dim)
        if conv_bias:
            weights[f"backbone.layers.{layer}.mixer.conv1d.bias"] = draw(inner)
    return weights


def of_mamba_ssm() -> dict[str, Tensor]:
    sizes = {"words": 16, "inner": 12, "taps": 4, "rank": 1, "bias": False}
    weights = weights_of("backbone.embedding", **sizes)
    return weights | {"lm_head.weight": weights["backbone.embedding.weight"].clone()}


def of_falcon() -> dict[str, Tensor]:
    return weights_of(conv_bias=False)


def rms(x: Tensor, eps: float, weight: Tensor | float = 1.0) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def logits(weights: dict[str, Tensor], ids: Tensor, eps: float, selection_eps: float | None = None) -> Tensor:
    """What a Mamba language model says, written from the paper: in float64, a token and a state after the other."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    embedding = next(tensor for name, tensor in weights.items() if "embedding" in name)
    x = embedding[ids]  # (b, l, d)
    for layer in range(2):
        own = {
            name.removeprefix(f"backbone.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"backbone.layers.{layer}.")
        }
        x = x + mixed(own, rms(x, eps, own["norm.weight"]), selection_eps)
    return rms(x, eps, weights["backbone.norm_f.weight"]) @ weights.get("lm_head.weight", embedding).t()


def mixed(own: dict[str, Tensor], x: Tensor, selection_eps: float | None) -> Tensor:
    n, rank, taps = own["mixer.A_log"].shape[1], own["mixer.dt_proj.weight"].shape[1], own["mixer.conv1d.weight"]
    both = F.linear(x, own["mixer.in_proj.weight"], own.get("mixer.in_proj.bias"))
    u, z = both.chunk(2, -1)
    b, l, e = u.shape
    padded = F.pad(u, (0, 0, taps.shape[2] - 1, 0))
    u = sum(padded[:, k : k + l] * taps[:, 0, k] for k in range(taps.shape[2]))
    u = F.silu(u + own.get("mixer.conv1d.bias", 0.0))
    dt, B, C = (u @ own["mixer.x_proj.weight"].t()).split([rank, n, n], -1)
    if selection_eps is not None:
        dt, B, C = (rms(each, selection_eps) for each in (dt, B, C))
    delta = F.softplus(dt @ own["mixer.dt_proj.weight"].t() + own["mixer.dt_proj.bias"])
    A, state, out = -own["mixer.A_log"].exp(), torch.zeros(b, e, n, dtype=x.dtype), []
    for t in range(l):
        state = (delta[:, t, :, None] * A).exp() * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(-1) + own["mixer.D"] * u[:, t])
    y = torch.stack(out, 1) * F.silu(z)
    return F.linear(y, own["mixer.out_proj.weight"], own.get("mixer.out_proj.bias"))


def close(model: MultiModalMamba, expected: Tensor) -> None:
    torch.testing.assert_close(model(IDS).logits.double(), expected, rtol=1e-4, atol=1e-4)


def error_of(config: dict[str, Any], weights: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_mamba(config, weights)
    return str(caught.value)


# Language models.


def test_of_mamba_ssm() -> None:
    weights = of_mamba_ssm()
    config, renamed = from_mamba(MAMBA_SSM, weights)
    assert (config.vocab_size, config.dim, config.depth, config.d_state, config.expand) == (16, 6, 2, 3, 2)
    assert config.tie_embeddings
    assert config.image_size is None
    torch.testing.assert_close(
        assemble(config, renamed)(IDS).logits.double(), logits(weights, IDS, 1e-5), rtol=1e-4, atol=1e-4
    )


def test_of_mamba_ssm_with_a_head_of_its_own_and_more_options() -> None:
    ssm = {"d_state": 3, "expand": 3, "d_conv": 3, "dt_rank": 4, "bias": True, "dt_min": 0.01, "use_fast_path": False}
    weights = weights_of("backbone.embedding") | {"lm_head.weight": torch.randn(11, 6)}
    given = MAMBA_SSM | {"ssm_cfg": ssm, "vocab_size": 11, "pad_vocab_size_multiple": 1, "tie_embeddings": False}
    config, renamed = from_mamba(given, weights)
    assert not config.tie_embeddings
    torch.testing.assert_close(
        assemble(config, renamed)(IDS).logits.double(), logits(weights, IDS, 1e-5), rtol=1e-4, atol=1e-4
    )


def test_of_transformers() -> None:
    weights = weights_of()
    config, renamed = from_mamba(MAMBA, weights)
    assert config.mixer_options == {"dt_rank": 4, "bias": True}
    assert (config.norm_eps, config.expand, config.d_conv) == (1e-2, 3, 3)
    assert (config.pad_token_id, config.eos_token_id) == (0, 2)
    torch.testing.assert_close(
        assemble(config, renamed)(IDS).logits.double(), logits(weights, IDS, 1e-2), rtol=1e-4, atol=1e-4
    )


def test_of_falcon_mamba() -> None:
    weights = of_falcon()
    config, renamed = from_mamba(FALCON, weights)
    assert config.mixer_options == {"dt_rank": 4, "bias": True, "conv_bias": False, "selection_norm": 1e-2}
    expected = logits(weights, IDS, 1e-2, 1e-2)
    close(assemble(config, renamed), expected)
    assert not torch.allclose(expected, logits(weights, IDS, 1e-2), atol=1e-2)


def test_a_model_without_its_head() -> None:
    weights = weights_of()
    bare = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    (config, renamed), (same, also) = from_mamba(MAMBA, weights), from_mamba(MAMBA, bare)
    assert config == same
    assert renamed.keys() == also.keys()


def test_tensors_are_passed_on_as_they_are() -> None:
    weights = weights_of()
    weights["backbone.layers.0.mixer.out_proj.weight"] = weights["backbone.layers.0.mixer.out_proj.weight"].bfloat16()
    config, renamed = from_mamba(MAMBA, weights)
    assert renamed["embedding.weight"] is weights["backbone.embeddings.weight"]
    model = assemble(config, renamed)
    assert model.backbone.layers[0].mixer.out_proj.weight.dtype == torch.bfloat16
    assert model.backbone.layers[0].mixer.in_proj.weight.dtype == torch.float32
    assert {each.dtype for each in assemble(config, renamed, torch.float16).parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"ssm_cfg": {"layer": "Mamba2"}},
            "from_mamba: `ssm_cfg` must have the layer 'Mamba1', got 'Mamba2'. This model has Mamba-1 layers alone.",
        ),
        (
            {"ssm_cfg": {"headdim": 64, "ngroups": 1}},
            "from_mamba: `ssm_cfg` must have the keys of a Mamba-1 layer, got headdim, ngroups. "
            "This model has no such layers.",
        ),
        (
            {"attn_layer_idx": [1, 3]},
            "from_mamba: `attn_layer_idx` must be empty, got attention in layers 1, 3. "
            "This model has Mamba layers alone.",
        ),
        (
            {"d_intermediate": 32},
            "from_mamba: `d_intermediate` must be 0, got 32. "
            "This model has no feed-forward layers between the Mamba layers.",
        ),
        (
            {"rms_norm": False},
            "from_mamba: `rms_norm` must be True, got False. This model has no LayerNorm between the Mamba layers.",
        ),
    ],
)
def test_what_a_model_of_mamba_ssm_may_not_have(change: dict[str, Any], text: str) -> None:
    assert error_of(MAMBA_SSM | change, of_mamba_ssm()) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"hidden_act": "relu"},
            "from_mamba: `hidden_act` must be 'silu', got 'relu'. The Mamba layers of this model have no other.",
        ),
        (
            {"intermediate_size": 20},
            "from_mamba: `intermediate_size` must be a multiple of hidden_size = 6, got 20. "
            "The Mamba layers of this model have no other.",
        ),
        (
            {"model_type": "jamba"},
            "from_mamba: the config must be of mamba_ssm, or its `model_type` mamba or falcon_mamba, got 'jamba'. "
            "Other models cannot be converted.",
        ),
        (
            {"model_type": None},
            "from_mamba: the config must be of mamba_ssm, or its `model_type` mamba or falcon_mamba, got neither. "
            "Other models cannot be converted.",
        ),
        (
            {"state_size": 4},
            "from_mamba: the weights of the model that its config describes were expected; of another form: "
            "`backbone.layers.0.mixer.A_log` (18, 3) for (18, 4), "
            "`backbone.layers.0.mixer.x_proj.weight` (10, 18) for (12, 18), "
            "`backbone.layers.1.mixer.A_log` (18, 3) for (18, 4) and 1 more. "
            "Take config and weights from one checkpoint.",
        ),
        (
            {"tie_word_embeddings": False},
            "from_mamba: the weights of the model that its config describes were expected; missing: `lm_head.weight`. "
            "Take config and weights from one checkpoint.",
        ),
    ],
)
def test_what_a_model_of_transformers_may_not_have(change: dict[str, Any], text: str) -> None:
    assert error_of(MAMBA | change, weights_of()) == text


def test_two_heads_and_a_config_that_ties_them() -> None:
    weights = weights_of()
    head = weights["backbone.embeddings.weight"]
    from_mamba(MAMBA, weights | {"lm_head.weight": head.clone()})
    assert error_of(MAMBA, weights | {"lm_head.weight": head + 1}) == (
        "from_mamba: the head must be the embedding, as the config ties them, got two different matrices. "
        "Set tie_word_embeddings (of mamba_ssm: tie_embeddings) to false if the head is right."
    )


def test_a_head_that_is_the_embedding_with_a_nan_in_it() -> None:
    weights = weights_of()
    weights["backbone.embeddings.weight"][1, 2] = torch.nan
    head = weights["backbone.embeddings.weight"].clone()
    assert "lm_head.weight" not in from_mamba(MAMBA, weights | {"lm_head.weight": head})[1]
    for other in (head.nan_to_num(), head.half(), head[:1]):
        assert "got two different matrices" in error_of(MAMBA, weights | {"lm_head.weight": other})


def test_an_inner_width_that_is_no_number() -> None:
    config = {name: value for name, value in MAMBA.items() if name != "intermediate_size"}
    assert error_of(config | {"expand": "2"}, weights_of()) == (
        "from_mamba: `expand` must be a number, got '2'. Restore the config where the weights are from."
    )
    assert error_of(config | {"expand": 10**400}, weights_of()).count("\n") == 0


def test_two_tensors_of_one_name() -> None:
    weights = weights_of()
    weights["backbone.embedding.weight"] = weights["backbone.embeddings.weight"] + 1
    assert error_of(MAMBA, weights) == (
        "from_mamba: `state_dict` must have one tensor for `embedding.weight`, got `backbone.embeddings.weight` and "
        "`backbone.embedding.weight`. Leave out one of them."
    )


@pytest.mark.parametrize("other", [[1], "d_model", None])
def test_what_is_no_mapping(other: Any) -> None:
    kind = type(other).__name__
    advice = "Pass the dict that it is made of."
    assert error_of(other, weights_of()) == f"from_mamba: `config` must be a mapping, got {kind}. {advice}"
    assert error_of(MAMBA, other) == f"from_mamba: `state_dict` must be a mapping, got {kind}. {advice}"
    with pytest.raises(CheckpointError) as caught:
        from_vision_tower(other, {})
    assert str(caught.value) == f"from_vision_tower: `config` must be a mapping, got {kind}. {advice}"


def test_a_size_that_no_model_has() -> None:
    with pytest.raises(ConfigError, match="`depth` must be an int of at least 1, got 0"):
        from_mamba(MAMBA | {"num_hidden_layers": 0}, {})


def test_no_state_dict() -> None:
    assert error_of(MAMBA, {"model": {}}) == (
        "from_mamba: `state_dict` must map names to tensors, got 'model': dict. Pass that of a model."
    )


# Vision towers.

TOWER = {"image_size": 16, "patch_size": 8, "dim": 64, "depth": 2, "heads": 1}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 16,
    "patch_size": 8,
}


def of_timm(architecture: str = "vit_tiny_patch8_16", **fields: Any) -> tuple[dict[str, Any], VisionTransformer]:
    """A ViT with random weights, and the config.json that timm writes; the names are timm's as they are."""
    model = VisionTransformer(ViTConfig(**TOWER, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return {"architecture": architecture, "pretrained_cfg": {"input_size": [3, 16, 16]}}, model.eval()


def of_clip() -> dict[str, Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape) / 4

    weights = {
        "embeddings.class_embedding": draw(8),
        "embeddings.patch_embedding.weight": draw(8, 3, 8, 8),
        "embeddings.position_embedding.weight": draw(5, 8),
        **{f"{norm}.{part}": draw(8) for norm in ("pre_layrnorm", "post_layernorm") for part in ("weight", "bias")},
    }
    dense = {f"self_attn.{each}_proj": (8, 8) for each in ("q", "k", "v", "out")} | {
        "mlp.fc1": (12, 8),
        "mlp.fc2": (8, 12),
    }
    for name, shape in dense.items():
        weights |= {f"encoder.layers.0.{name}.weight": draw(*shape), f"encoder.layers.0.{name}.bias": draw(shape[0])}
    for name in ("layer_norm1", "layer_norm2"):
        weights |= {f"encoder.layers.0.{name}.weight": draw(8), f"encoder.layers.0.{name}.bias": draw(8)}
    return {f"vision_model.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("vit_tiny_patch8_16", {}),
        ("vit_tiny_patch8_16", {"class_token": True, "mlp_ratio": 3.0}),
        ("vit_tiny_patch8_reg4_16", {"class_token": True, "registers": 4, "prefix_positions": False}),
        ("deit3_tiny_patch8_16", {"class_token": True, "layer_scale": 1e-5, "prefix_positions": False}),
        ("vit_tiny_patch8_16", {"final_norm": False, "qkv_bias": False}),
    ],
)
def test_the_form_of_a_timm_model_shows_in_its_tensors(architecture: str, fields: dict[str, Any]) -> None:
    config, model = of_timm(architecture, **fields)
    vit, weights = from_vision_tower(config, {**model.state_dict(), "head.weight": torch.randn(10, 64)})
    assert vit == model.config
    assert weights.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_base_patch16_siglip_224", "swin_tiny_patch4_224"])
def test_a_timm_model_that_is_not_plain(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_vision_tower({"architecture": name}, {})
    assert str(caught.value) == (
        "from_vision_tower: `architecture` must be a plain ViT or DeiT of timm, such as vit_small_patch16_224, "
        f"got {name!r}. Make its ViTConfig yourself, and rename its state dict with mmm_vit.from_timm."
    )


def test_a_timm_model_without_its_weights() -> None:
    config, model = of_timm()
    with pytest.raises(CheckpointError, match=r"the weights of vit_tiny_patch8_16 and its `pretrained_cfg`"):
        from_vision_tower(config, {"head.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"with an `input_size` were expected, got others \('pretrained_cfg'\)"):
        from_vision_tower({"architecture": config["architecture"]}, model.state_dict())


def test_another_tower() -> None:
    with pytest.raises(CheckpointError, match=r"from_vision_tower: .*`model_type` must be one of .*, got 'swin'"):
        from_vision_tower({"model_type": "swin"}, {})


def test_a_model_that_reads_images() -> None:
    text = from_mamba(MAMBA, weights_of())
    tower, encoder = of_timm(class_token=True)
    options = {"fusion_method": "perceiver", "fusion_options": {"depth": 1}, "heads": 3, "image_token_id": 4}
    config, weights = with_encoder(text, from_vision_tower(tower, encoder.state_dict()), **options)
    assert {name: getattr(config, name) for name in options} == options
    assert config.encoder_options == {"class_token": True}
    model = assemble(config, weights)
    assert isinstance(model.backbone, MultiModalMambaBlock)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.backbone.encode(images).tokens, encoder(images))
    assert model.backbone.encoder.config == encoder.config
    own = own_tensors(model)
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert {name.split(".")[1] for name in own.keys() - weights.keys()} == {"fusion"}


def test_a_fresh_method_is_as_wide_as_the_rest() -> None:
    tower = from_vision_tower(CLIP, of_clip())
    text, narrow = from_mamba(MAMBA, weights_of()), torch.bfloat16
    config, weights = with_encoder(text, tower, fusion_method="cross_attention", heads=2)
    weights = {name: tensor.to(narrow) for name, tensor in weights.items()}
    assert {each.dtype for each in assemble(config, weights).parameters()} == {narrow}


def test_weights_that_are_not_those_of_the_config() -> None:
    config, weights = from_mamba(MAMBA, weights_of())
    del weights["embedding.weight"]
    with pytest.raises(CheckpointError, match=r"^assemble: .*; missing: `embedding.weight`\. "):
        assemble(config, weights)


@pytest.mark.parametrize(
    "config",
    [
        MAMBA_SSM | {"pad_vocab_size_multiple": 0},
        MAMBA_SSM | {"vocab_size": "13"},
        MAMBA_SSM | {"ssm_cfg": "Mamba1"},
        MAMBA_SSM | {"ssm_cfg": {"dt_rank": "all"}},
        MAMBA | {"hidden_size": 0},
        MAMBA | {"hidden_size": None, "intermediate_size": None},
        MAMBA | {"eos_token_id": []},
    ],
    ids=str,
)
def test_a_config_of_other_kinds_of_values(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^from_mamba: a config with the values of a model was expected, got"):
        from_mamba(config, {})


def test_a_tower_with_no_heads() -> None:
    vit = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 0}
    with pytest.raises(CheckpointError, match=r"^from_vision_tower: "):
        from_vision_tower(vit, {})
