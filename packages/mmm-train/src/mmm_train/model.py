"""The model that answers: words and image tokens, fused, read by Mamba layers, and one answer chosen at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_block import MultiModalMambaBlock
from mmm_train.config import ModelConfig
from mmm_train.data.tokenizer import PAD
from mmm_train.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class AnswerModel(nn.Module):
    """Answers questions about images with one of a fixed list of answers.

    Args:
        config: Sizes.
        words: Words that the tokenizer knows.
        answers: Answers to choose from.
    Raises:
        ConfigError: A size is out of its range, or two disagree.
        mmm_fusion.UnknownMethodError: No fusion method has the name in `config`.
    """

    def __init__(self, config: ModelConfig, *, words: int, answers: int) -> None:
        super().__init__()
        self.block = _block(config)  # first, since it checks the sizes
        self.embed = nn.Embedding(words, config.dim, padding_idx=PAD)
        self.head = nn.Linear(config.dim, answers)
        # As small as image tokens are at first; at torch's standard deviation of 1 words drown the image.
        nn.init.normal_(self.embed.weight, std=0.02)
        with torch.no_grad():
            self.embed.weight[PAD] = 0
        self.embed.weight._no_weight_decay = True  # type: ignore[attr-defined]  # rare words would fade

    def forward(
        self,
        images: Float[Tensor, "i c y x"],
        text: Int[Tensor, "b l"],
        text_mask: Bool[Tensor, "b l"],
        image_of: Int[Tensor, " b"],
    ) -> Float[Tensor, "b a"]:
        """Read each image once, and answer all questions.

        Args:
            images: Pixels in [-1, 1], `(i, c, y, x)`.
            text: Numbers of the words, `(b, l)`.
            text_mask: True for a word, False for padding, `(b, l)`; each row has a word.
            image_of: Which of the images a question is about, `(b,)`.
        Returns:
            One score an answer, `(b, a)`.
        """
        read = self.block.read_image(images).rows(image_of)
        states = self.block.read_text(self.embed(text), read, text_mask=text_mask)  # (b, l, dim)
        last = text_mask.sum(1) - 1  # the word that has seen all others, and the image
        scores: Tensor = self.head(states[torch.arange(len(last), device=last.device), last])
        return scores


def _block(config: ModelConfig) -> MultiModalMambaBlock:
    try:
        return MultiModalMambaBlock(
            dim=config.dim,
            depth=config.depth,
            dropout=config.dropout,
            heads=config.heads,
            d_state=config.d_state,
            image_size=config.image_size,
            patch_size=config.patch_size,
            encoder_dim=config.encoder_dim,
            encoder_depth=config.encoder_depth,
            encoder_heads=config.encoder_heads,
            fusion_method=config.fusion,
            fusion_options=config.fusion_options,
        )
    except ValueError as error:  # what the packages below say of a size that they cannot build
        raise ConfigError(f"settings under model: {error}") from error
