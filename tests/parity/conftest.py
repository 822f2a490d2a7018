"""Models of transformers, small, with weights under which every part of a layer counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

logging.set_verbosity_error()  # transformers says that it has no CUDA kernels

MAMBA = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 8}
JAMBA = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "num_experts": 2,
    "mamba_d_state": 5,
    "mamba_dt_rank": 3,
}
KINDS = ["mamba", "falcon_mamba", "jamba"]


def of_kind(kind: str, **options: Any) -> PreTrainedModel:
    """A model of one kind in `eval`, the same each time."""
    classes = {
        "mamba": (MambaForCausalLM, MambaConfig, MAMBA),
        "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, MAMBA),
        "jamba": (JambaForCausalLM, JambaConfig, JAMBA),
    }
    model_class, config_class, sizes = classes[kind]
    model = model_class(config_class(**{**sizes, **options}, pad_token_id=0, eos_token_id=None))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-2, 1)
            elif parameter.ndim > 1:  # an output is about as large as an input
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def build() -> Callable[..., PreTrainedModel]:
    """Makes a model of one kind, with options of its config."""
    return of_kind


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model of each kind, not accelerated."""
    return of_kind(request.param)
