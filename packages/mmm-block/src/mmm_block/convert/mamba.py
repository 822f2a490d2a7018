"""Mamba language models of state-spaces' mamba_ssm and of transformers: their config and names, as ours.

The layers have the same parameters in all of them. Configs differ in their keys and defaults.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mmm_block.config import MultiModalMambaConfig
from mmm_block.convert.sources import expect_mappings
from mmm_block.errors import CheckpointError, ConfigError
from mmm_block.model import MultiModalMamba
from mmm_block.weights import check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

WHERE = "from_mamba"
HEAD, EMBEDDING = "lm_head.weight", "embedding.weight"
RENAMED = (
    (r"^(backbone\.)?embeddings?\.", "embedding."),
    (r"^(layers|norm_f)\.", r"backbone.\1."),  # of a model without its head
)

# What a config.json leaves out has these values.
MAMBA_SSM: dict[str, Any] = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "pad_vocab_size_multiple": 8,
    "rms_norm": True,
    "tie_embeddings": True,
    "d_intermediate": 0,
    "attn_layer_idx": [],
    "ssm_cfg": {},
}
SSM_CFG: dict[str, Any] = {
    "layer": "Mamba1",
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "dt_rank": "auto",
    "bias": False,
    "conv_bias": True,
}
STARTS = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}  # none is left in a checkpoint
TRANSFORMERS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 32,
    "vocab_size": 50280,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "intermediate_size": None,
    "time_step_rank": "auto",
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "mixer_rms_eps": 1e-6,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "eos_token_id": None,
}


def from_mamba(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[MultiModalMambaConfig, dict[str, Tensor]]:
    """A Mamba language model of another library as a `MultiModalMamba` without images.

    The vocabulary is that of the weights: mamba_ssm pads it. Between the layers, tokens are in float32 here, whatever
    `residual_in_fp32` says.

    Args:
        config: A config.json as a dict: of mamba_ssm (`d_model`, `n_layer`, `ssm_cfg`), or of transformers'
            `model_type` `mamba` or `falcon_mamba`, or its `to_dict()`.
        state_dict: The model's, in the library's names, with or without a head that is tied.
    Returns:
        The config of a model, and its state dict: new names to the same tensors.
    Raises:
        CheckpointError: It is another kind of model, has what this model has not, such as Mamba-2 or attention layers,
            or the state dict is not of the config.
        ConfigError: A size is out of its range.
    Source:
        mamba_ssm 2 `config_mamba.py` and `mixer_seq_simple.py`; transformers 5 `configuration_{mamba,falcon_mamba}.py`.
    """
    expect_mappings(WHERE, config, state_dict)
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            _refuse(
                "`state_dict` must map names to tensors", f"{name!r}: {type(value).__name__}", "Pass that of a model."
            )
    try:
        made = MultiModalMambaConfig.from_dict(_fields(config))
        weights = _renamed(state_dict, tied=made.tie_embeddings)
        with torch.device("meta"):
            check_weights(MultiModalMamba(made), weights, WHERE)
    except (CheckpointError, ConfigError):
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"{WHERE}: a config with the values of a model was expected, got others: {reason}. "
            "Restore it where the weights are from."
        ) from error
    return made, weights


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of our model, as values."""
    kind = config.get("model_type")
    falcon = kind == "falcon_mamba"
    if falcon or kind == "mamba":
        return _of_transformers(config, falcon=falcon)
    if kind is not None or "d_model" not in config:
        _refuse(
            "the config must be of mamba_ssm, or its `model_type` mamba or falcon_mamba",
            f"{kind!r}" if kind else "neither",
            "Other models cannot be converted.",
        )
    return _of_mamba_ssm(config)


def _of_mamba_ssm(given: Mapping[str, Any]) -> dict[str, Any]:
    config = MAMBA_SSM | dict(given)
    ssm = SSM_CFG | dict(config["ssm_cfg"] or {})
    layer = ssm["layer"]
    if layer != "Mamba1":
        _refuse("`ssm_cfg` must have the layer 'Mamba1'", f"{layer!r}", "This model has Mamba-1 layers alone.")
    if unknown := sorted(ssm.keys() - SSM_CFG.keys() - STARTS):
        _refuse("`ssm_cfg` must have the keys of a Mamba-1 layer", ", ".join(unknown), "This model has no such layers.")
    if config["attn_layer_idx"]:
        layers = ", ".join(map(str, config["attn_layer_idx"]))
        _refuse("`attn_layer_idx` must be empty", f"attention in layers {layers}", "This model has Mamba layers alone.")
    if config["d_intermediate"]:
        got = f"{config['d_intermediate']}"
        _refuse("`d_intermediate` must be 0", got, "This model has no feed-forward layers between the Mamba layers.")
    if not config["rms_norm"]:
        _refuse("`rms_norm` must be True", "False", "This model has no LayerNorm between the Mamba layers.")
    multiple = config["pad_vocab_size_multiple"]
    return {
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "dim": config["d_model"],
        "depth": config["n_layer"],
        "d_state": ssm["d_state"],
        "expand": ssm["expand"],
        "d_conv": ssm["d_conv"],
        "mixer_options": _mixer(ssm["dt_rank"], ssm["bias"], ssm["conv_bias"]),
        "tie_embeddings": config["tie_embeddings"],
    }


def _of_transformers(given: Mapping[str, Any], *, falcon: bool) -> dict[str, Any]:
    config = TRANSFORMERS | dict(given)
    dim, act = config["hidden_size"], config["hidden_act"]
    if act not in ("silu", "swish"):
        _refuse("`hidden_act` must be 'silu'", f"{act!r}", "The Mamba layers of this model have no other.")
    inner, expand = config["intermediate_size"], config["expand"]
    if not inner:
        if not isinstance(expand, int | float):
            _refuse("`expand` must be a number", f"{expand!r}", "Restore the config where the weights are from.")
        inner = int(expand * dim)
    if inner % dim:
        _refuse(
            f"`intermediate_size` must be a multiple of hidden_size = {dim}",
            f"{inner}",
            "The Mamba layers of this model have no other.",
        )
    ends = config["eos_token_id"]
    return {
        "vocab_size": config["vocab_size"],
        "dim": dim,
        "depth": config["num_hidden_layers"],
        "d_state": config["state_size"],
        "expand": inner // dim,
        "d_conv": config["conv_kernel"],
        "mixer_options": _mixer(config["time_step_rank"], config["use_bias"], config["use_conv_bias"])
        | ({"selection_norm": config["mixer_rms_eps"]} if falcon else {}),
        "norm_eps": config["layer_norm_epsilon"],
        "tie_embeddings": config["tie_word_embeddings"],
        "pad_token_id": config["pad_token_id"],
        "eos_token_id": ends[0] if isinstance(ends, list) else ends,
    }


def _mixer(rank: int | str, bias: bool, conv_bias: bool) -> dict[str, Any]:
    """The arguments of a layer that are not as they are by default."""
    options = {"dt_rank": None if rank == "auto" else rank, "bias": bias, "conv_bias": conv_bias}
    defaults = {"dt_rank": None, "bias": False, "conv_bias": True}
    return {name: value for name, value in options.items() if value != defaults[name]}


def _renamed(state_dict: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for given, tensor in state_dict.items():
        name = given
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name in weights:
            both = f"`{names[name]}` and `{given}`"
            _refuse(f"`state_dict` must have one tensor for `{name}`", both, "Leave out one of them.")
        weights[name], names[name] = tensor, given
    if tied and HEAD in weights and EMBEDDING in weights:
        head = weights.pop(HEAD)
        if not _same(head, weights[EMBEDDING]):
            _refuse(
                "the head must be the embedding, as the config ties them",
                "two different matrices",
                "Set tie_word_embeddings (of mamba_ssm: tie_embeddings) to false if the head is right.",
            )
    return weights


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices hold the same; NaN is the same as NaN."""
    alike = a.shape == b.shape and a.dtype == b.dtype
    return a is b or (alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _refuse(expected: str, got: str, advice: str) -> NoReturn:
    raise CheckpointError(f"{WHERE}: {expected}, got {got}. {advice}")
