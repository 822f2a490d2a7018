"""Vision towers of transformers: `ViTModel`, `DeiTModel`, and those of CLIP and SigLIP.

The config says which form a tower has; the state dict is renamed to timm's names, and queries, keys and values become
one matrix. Names are taken both as current versions hold them in memory and as they stand in files. transformers
itself is not imported.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch

from mmm_vit.config import Activation, ViTConfig
from mmm_vit.weights.fit import fit, tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# What a config.json leaves out has these values.
SHARED = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "qkv_bias": True,  # CLIP and SigLIP always have it
}
VIT = SHARED | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "clip_vision_model": SHARED | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip_vision_model": SHARED | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}

FORMS: dict[str, dict[str, Any]] = {
    "vit": {"class_token": True},
    "deit": {"class_token": True, "registers": 1},  # the distillation token is a token like a register
    # CLIP's last norm is of its pooled class token alone: no user of its patches applies it.
    "clip_vision_model": {"class_token": True, "patch_bias": False, "pre_norm": True, "final_norm": False},
    "siglip_vision_model": {},
}

TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # of models that read text too

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}

HEADS = (  # poolers, classifiers, the text side, and buffers
    r"(pooler|head|decoder|(cls_|distillation_)?classifier|text_model|(text|visual)_projection)\..*",
    r"logit_(scale|bias)",
    r"embeddings\.(mask_token|position_ids)",
)

RENAMED = (
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "reg_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),  # written so
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^(encoder\.)?layers?\.(?=\d+\.)", "blocks."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(attention|self_attn)\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r".attn.\3."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def config_from_transformers(config: Mapping[str, Any]) -> ViTConfig:
    """The `ViTConfig` of a vision tower of transformers.

    CLIP's comes without final norm: theirs is of the pooled class token alone. Set `final_norm=True` with
    `dataclasses.replace` to have it on every token. Rates of dropout are not taken over, as they belong to a training.

    Args:
        config: A config.json as a dict, or `to_dict()` of a config of transformers; of type `vit`, `deit`,
            `clip_vision_model` or `siglip_vision_model`, or of a `clip` or `siglip` model around such a tower.
    Returns:
        The config of an encoder that takes the tower's weights by `from_transformers`.
    Raises:
        ValueError: The tower is of another type, or has an activation or a head width that this encoder has not.
    Source:
        transformers 5 `configuration_{vit,deit,clip,siglip}.py`, defaults included.
    """
    kind = config.get("model_type")
    if kind in TOWERS:
        kind, config = TOWERS[kind], config.get("vision_config") or {}
    if kind not in DEFAULTS:
        known = ", ".join(sorted(DEFAULTS | TOWERS))
        raise ValueError(
            f"config_from_transformers: `model_type` must be one of {known}, got {kind!r}. "
            "Pass the config of the vision tower itself, or choose another checkpoint."
        )
    fields = DEFAULTS[kind] | {name: value for name, value in config.items() if name in DEFAULTS[kind]}
    dim, heads, activation = fields["hidden_size"], fields["num_attention_heads"], fields["hidden_act"]
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"config_from_transformers: `hidden_act` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}. "
            "This encoder has no other: choose another checkpoint."
        )
    if config.get("head_dim") not in (None, dim // heads):
        raise ValueError(
            f"config_from_transformers: `head_dim` must be hidden_size / num_attention_heads = {dim // heads}, "
            f"got {config['head_dim']}. This encoder has no other: choose another checkpoint."
        )
    return ViTConfig(
        image_size=fields["image_size"],
        patch_size=fields["patch_size"],
        dim=dim,
        depth=fields["num_hidden_layers"],
        heads=heads,
        channels=fields["num_channels"],
        mlp_ratio=_ratio(fields["intermediate_size"], dim),
        activation=ACTIVATIONS[activation],
        qkv_bias=fields["qkv_bias"],
        norm_eps=fields["layer_norm_eps"],
        **FORMS[kind],
    )


def from_transformers(
    state_dict: Mapping[str, Tensor], config: ViTConfig, *, grid: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """A vision tower's state dict in the form that `VisionTransformer(config).load_state_dict` takes.

    Poolers, classifiers, SigLIP's attention pooling and all of the text side are left out, and the last norm where the
    config has no final norm.

    Args:
        state_dict: Of a `ViTModel`, `DeiTModel`, `CLIPVisionModel` or `SiglipVisionModel`, or of a model around one;
            from memory or from a file.
        config: Of the model to load into, as `config_from_transformers` makes it. Its `image_size` may differ from
            the checkpoint's.
        grid: Rows and columns of patches that the checkpoint's positions are of; as for `from_timm`.
    Returns:
        New names to the same tensors, but for queries, keys and values, which are one, and for positions, which are
        resampled if the grids differ.
    Raises:
        TypeError: A value is no tensor.
        ValueError: The checkpoint is not of this config, or has layers that this encoder has not.
    Source:
        Names of transformers 5 `modeling_{vit,deit,clip,siglip}.py`, and of the files of versions before it.
    """
    weights = {}
    for name, tensor in tensors(state_dict, "from_transformers"):
        own = re.sub(r"^(vit|deit|vision_model)\.", "", name)
        if not any(re.fullmatch(pattern, own) for pattern in HEADS):
            weights[_rename(own)] = tensor
    if "cls_token" in weights:
        weights["cls_token"] = weights["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in weights:
        weights["pos_embed"] = weights["pos_embed"].reshape(1, *weights["pos_embed"].shape[-2:])
    if not config.final_norm:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("norm.")}
    return fit(_join_qkv(weights), config, grid, "from_transformers")


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _join_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of a block as one tensor, where all three are there."""
    joined = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)q(\.\w+)", name):
            before, after = match.groups()
            names = [f"{before}{part}{after}" for part in "qkv"]
            if weights.keys() >= set(names):
                joined[f"{before}qkv{after}"] = torch.cat([joined.pop(each) for each in names])
    return joined


def _ratio(hidden: int, dim: int) -> float:
    """The ratio of which `int(dim * ratio)` is `hidden`: the nearest may fall short by a bit."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
