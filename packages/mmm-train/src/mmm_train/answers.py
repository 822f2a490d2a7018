"""The answers that a model writes: a beam search, of which the greedy way is the narrowest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_train.data.tokenizer import ANSWER, END, IMAGE, PAD, UNKNOWN
from mmm_train.model import read_pictures

if TYPE_CHECKING:
    from mmm_block import MultiModalMamba
    from mmm_train.data import Batch, Tokenizer


class Answer(NamedTuple):
    """What a model says.

    Attributes:
        text: The answer.
        probability: That of its words and of its end.
    """

    text: str
    probability: float


@torch.inference_mode()
def write_answers(
    model: MultiModalMamba, batch: Batch, tokenizer: Tokenizer, *, longest: int, width: int = 1
) -> list[list[Answer]]:
    """Let a model answer the questions of a batch.

    Args:
        model: The model, in its mode of evaluation.
        batch: The questions; their answers are not looked at.
        tokenizer: Puts words together.
        longest: Tokens that an answer may have, its end included.
        width: How many answers to follow at once. 1 is the greedy way: always the most probable word.
    Returns:
        Up to `width` answers for each question, the most probable first.
    """
    batch = batch.to(model.embedding.weight.device)
    state = read_pictures(model, batch.images).rows(batch.image_of)
    out = model(batch.text, attention_mask=batch.prompt_mask, state=state, return_state=True, last_only=True)
    state, logits, b = out.state, out.logits, len(batch.text)
    score = logits.new_full((b, width), -torch.inf)
    score[:, 0] = 0
    ended = score.isneginf()
    words = batch.text.new_empty(b, width, 0)
    unsaid = torch.tensor([PAD, UNKNOWN, IMAGE, ANSWER], device=logits.device)
    for _ in range(longest):
        # An answer that has ended goes on with padding, at no cost.
        gain = logits.new_full((b, width, logits.shape[1]), -torch.inf)
        gain[..., PAD] = 0
        gain[~ended] = logits.index_fill(1, unsaid, -torch.inf).log_softmax(-1)
        score, chosen = (score[..., None] + gain).flatten(1).topk(width)
        source, word = chosen // logits.shape[1], chosen % logits.shape[1]
        words = torch.cat([words.gather(1, source[..., None].expand_as(words)), word[..., None]], dim=2)
        place = (~ended).flatten().cumsum(0).view(b, width) - 1
        ended = ended.gather(1, source) | (word == END) | score.isneginf()
        if bool(ended.all()):
            break
        state = state.rows(place.gather(1, source)[~ended])
        logits = model.step(word[~ended], state)
    return [
        [Answer(tokenizer.decode(w), p) for w, p in zip(ws, ps, strict=True) if p > 0]
        for ws, ps in zip(words.tolist(), score.exp().tolist(), strict=True)
    ]
