"""Models of transformers, small, with weights under which every part of a layer counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from mmm_block.transformers import (
    MultiModalMambaForConditionalGeneration,
    MultiModalMambaHfConfig,
    MultiModalMambaImageProcessor,
    MultiModalMambaProcessor,
)

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
MARK = 3
OURS = {
    "vocab_size": 40,
    "dim": 16,
    "depth": 2,
    "image_size": 16,
    "patch_size": 8,
    "encoder_dim": 12,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "heads": 2,
    "image_token_id": MARK,
    "pad_token_id": 0,
}
METHODS = ["concat", "cross_attention", "state", "mlp"]
KINDS = ["mamba", "falcon_mamba", "jamba"]


def of_kind(kind: str, **options: Any) -> PreTrainedModel:
    """A model of one kind in `eval`, the same each time."""
    classes = {
        "mamba": (MambaForCausalLM, MambaConfig, MAMBA),
        "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, MAMBA),
        "jamba": (JambaForCausalLM, JambaConfig, JAMBA),
    }
    model_class, config_class, sizes = classes[kind]
    return with_weights(model_class(config_class(**{**sizes, **options}, pad_token_id=0, eos_token_id=None)))


def with_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The model in `eval`, with the same weights each time."""
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


def of_ours(**options: Any) -> MultiModalMambaForConditionalGeneration:
    """Our model for transformers in `eval`, the same each time."""
    return with_weights(MultiModalMambaForConditionalGeneration(MultiModalMambaHfConfig(**{**OURS, **options})))


@pytest.fixture
def build_ours() -> Callable[..., MultiModalMambaForConditionalGeneration]:
    """Makes our model for transformers, with fields of its config."""
    return of_ours


@pytest.fixture(params=METHODS)
def ours(request: pytest.FixtureRequest) -> MultiModalMambaForConditionalGeneration:
    """Our model for transformers, with each of some fusion methods."""
    return of_ours(fusion_method=request.param)


@pytest.fixture
def prompts() -> dict[str, torch.Tensor]:
    """Rows of unequal length, padded on the left, with two images, none and one."""
    ids = torch.randint(4, 40, (3, 9))
    ids[0, 2] = ids[0, 6] = ids[2, 8] = MARK
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "pixel_values": torch.randn(3, 3, 16, 16)}


@pytest.fixture
def processor() -> MultiModalMambaProcessor:
    """Pictures of 16 by 16, and a tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[EOS]", "<image>", "what", "is", "and", "red", "green", "blue", "?"]
    inner = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}"
    )
    images = MultiModalMambaImageProcessor(size={"height": 16, "width": 16})
    return MultiModalMambaProcessor(images, tokenizer, chat_template=template)
