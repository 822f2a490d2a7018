"""Vision towers of transformers and plain ViTs of timm as the encoder of a `MultiModalMamba`."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from mmm_block.config import OWN
from mmm_block.convert.sources import expect_mappings
from mmm_block.errors import CheckpointError
from mmm_vit import ViTConfig, config_from_transformers, from_timm, from_transformers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmm_block.config import MultiModalMambaConfig

PLAIN = re.compile(r"(vit|deit|deit3)_[a-z]+\d*_(distilled_)?patch\d+_(reg\d+_)?\d+")
"""Architectures of timm with its usual activation, epsilon and number of heads."""


def from_vision_tower(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """A vision tower of another library as a `VisionTransformer`.

    Args:
        config: A config.json as a dict: of a ViT, DeiT, CLIP or SigLIP of transformers, or of a plain ViT or DeiT of
            timm, with its `architecture`.
        state_dict: The tower's, in the library's names, or that of a model around it.
    Returns:
        The config of the encoder, and its state dict.
    Raises:
        CheckpointError: It is another kind of model, or the state dict is not of the config.
    """
    expect_mappings("from_vision_tower", config, state_dict)
    try:
        if "architecture" in config:
            vit = _config_from_timm(config, state_dict)
            return vit, from_timm(state_dict, vit)
        vit = config_from_transformers(config)
        return vit, from_transformers(state_dict, vit)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"from_vision_tower: {error}") from error


def with_encoder(
    model: tuple[MultiModalMambaConfig, Mapping[str, Tensor]],
    encoder: tuple[ViTConfig, Mapping[str, Tensor]],
    **fields: Any,
) -> tuple[MultiModalMambaConfig, dict[str, Tensor]]:
    """Give a model without images an encoder, and room for a fusion method that has still to be trained.

    Args:
        model: Config and state dict, such as `from_mamba` returns.
        encoder: Config and state dict, such as `from_vision_tower` returns.
        fields: Further fields of the config: `fusion_method`, `fusion_options`, `heads`, `image_token_id`.
    Returns:
        The config, and all of its state dict but what the fusion method has: `assemble` makes a model of it.
    Raises:
        ConfigError: A field is out of its range.
    """
    (config, weights), (vit, tower) = model, encoder
    options = {
        each.name: value
        for each in dataclasses.fields(vit)
        if each.name not in OWN["encoder_options"] and (value := getattr(vit, each.name)) != each.default
    }
    both = config.to_dict() | {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "encoder_dim": vit.dim,
        "encoder_depth": vit.depth,
        "encoder_heads": vit.heads,
        "encoder_options": options,
    }
    renamed = {f"backbone.encoder.{name}": tensor for name, tensor in tower.items()}
    return type(config).from_dict(both | fields), {**weights, **renamed}


def _config_from_timm(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ViTConfig:
    """Most of a plain ViT shows in its tensors; the number of heads follows from the width in all of timm's."""
    name = str(config["architecture"])
    if not PLAIN.fullmatch(name):
        raise CheckpointError(
            f"`architecture` must be a plain ViT or DeiT of timm, such as vit_small_patch16_224, got {name!r}. "
            "Make its ViTConfig yourself, and rename its state dict with mmm_vit.from_timm."
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    try:
        dim, channels, *patch = shapes["patch_embed.proj.weight"]
        _, positions, _ = shapes["pos_embed"]
        hidden, _ = shapes["blocks.0.mlp.fc1.weight"]
        _, y, x = config["pretrained_cfg"]["input_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the weights of {name} and its `pretrained_cfg` with an `input_size` were expected, got others ({error}). "
            "Take both from one checkpoint."
        ) from error
    prefix = [shapes[key][1] for key in ("cls_token", "reg_token", "dist_token") if key in shapes]
    return ViTConfig(
        image_size=(y, x),
        patch_size=(patch[0], patch[1]),
        dim=dim,
        depth=1 + max(int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))),
        heads=16 if dim >= 1024 else dim // 64,
        channels=channels,
        mlp_ratio=hidden / dim,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        class_token="cls_token" in shapes,
        registers=sum(prefix) - ("cls_token" in shapes),
        prefix_positions=not prefix or positions != (y // patch[0]) * (x // patch[1]),
        layer_scale=1e-5 if {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & shapes.keys() else None,
        final_norm="norm.weight" in shapes,
    )
