"""The model of a training: a `MultiModalMamba` that reads a picture and a question, and writes the answer behind them.

    <image> what color is the shape? <answer> light blue <end>

A caption is the answer to no question. Everything up to the mark is the same for all questions about a picture: it is
read once, and each question goes on from the state that it left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_block import ModelState, MultiModalMambaConfig
from mmm_train.config import ModelConfig
from mmm_train.data.tokenizer import END, IMAGE, PAD
from mmm_train.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from mmm_block import MultiModalMamba
    from mmm_train.data import Batch


def new_model(config: ModelConfig, vocab_size: int) -> MultiModalMamba:
    """An untrained model.

    Args:
        config: Sizes.
        vocab_size: Number of tokens that the tokenizer knows.
    Returns:
        On the CPU.
    Raises:
        ConfigError: A size is out of its range, or two disagree.
        mmm_fusion.UnknownMethodError: No fusion method has the name in `config`.
    """
    from mmm_block import MultiModalMamba  # it brings huggingface_hub, which takes half a second

    try:
        return MultiModalMamba(
            MultiModalMambaConfig(
                vocab_size=vocab_size,
                dim=config.dim,
                depth=config.depth,
                d_state=config.d_state,
                dropout=config.dropout,
                image_size=config.image_size,
                patch_size=config.patch_size,
                encoder_dim=config.encoder_dim,
                encoder_depth=config.encoder_depth,
                encoder_heads=config.encoder_heads,
                fusion_method=config.fusion,
                fusion_options=config.fusion_options,
                heads=config.heads,
                image_token_id=IMAGE,
                pad_token_id=PAD,
                eos_token_id=END,
            )
        )
    except ValueError as error:  # what the packages below say of a size that they cannot build
        raise ConfigError(f"settings under model: {error}") from error


def read_pictures(model: MultiModalMamba, images: Float[Tensor, "i c y x"]) -> ModelState:
    """Read the marks of some pictures, and the pictures.

    Args:
        model: The model.
        images: Pixels in [-1, 1].
    Returns:
        A row for each picture, from which texts about it go on.
    """
    marks = torch.full((len(images), 1), IMAGE, device=images.device)
    state: ModelState = model(marks, images, return_state=True, return_embeddings=True).state
    return state


def loss_of(model: MultiModalMamba, batch: Batch) -> Float[Tensor, ""]:
    """How badly the model foresees the answers: the mean cross-entropy of their tokens.

    Args:
        model: The model.
        batch: Pictures, questions and answers.
    Returns:
        The loss.
    """
    state = read_pictures(model, batch.images).rows(batch.image_of)
    loss: Tensor = model(batch.text, attention_mask=batch.text_mask, labels=batch.labels, state=state).loss
    return loss
