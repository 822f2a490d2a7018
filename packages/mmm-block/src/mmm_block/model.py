"""`MultiModalMamba`: text tokens and any number of images in, the next token's logits out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mmm_block.block import ImageTokens, MultiModalMambaBlock
from mmm_block.checkpoint import Pretrained
from mmm_block.config import MultiModalMambaConfig
from mmm_block.errors import InputError
from mmm_block.generate import Generation, Stopping, TokenStream, check_prompts, find_seeds, find_seen
from mmm_block.inputs import (
    check_bounds,
    check_images,
    check_labels,
    check_mask,
    check_next,
    check_pixels,
    check_state,
    check_tokens,
)
from mmm_block.layout import find_texts, next_tokens
from mmm_block.reading import go_on, read_packed, read_rows
from mmm_block.sampling import Sampling
from mmm_block.stack import MambaStack
from mmm_core.products import apply_linear
from mmm_vit import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from mmm_block.layout import Texts
    from mmm_block.state import ModelState

IGNORE = -100
"""The label of a position at which nothing is asked."""


class ModelOutput(NamedTuple):
    """What `MultiModalMamba` returns; what was not asked for is None.

    Attributes:
        logits: Of the token behind each token, `(b, l, vocab_size)`, or with `last_only` behind the last of each text,
            `(b, vocab_size)`. At padding they mean nothing.
        loss: The mean cross-entropy of the labels.
        embeddings: The normed tokens behind the last layer, of the shape of the logits but `dim` wide.
        state: What the texts left behind.
    """

    logits: Float[Tensor, "b l v"] | None
    loss: Float[Tensor, ""] | None
    embeddings: Float[Tensor, "b l d"] | None
    state: ModelState | None


class MultiModalMamba(Pretrained, nn.Module):
    """A language model on Mamba layers that reads images where `<image>` stands in the text.

    Args:
        config: Sizes and options.
        fields: The fields of a config in place of one.
    Raises:
        ConfigError: A value is out of its range.
        ValueError: The encoder or the block refuses a value, such as patches that do not tile the image.
        mmm_fusion.UnknownMethodError: No fusion method has the config's name.
    """

    def __init__(self, config: MultiModalMambaConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if (config is None) == (not fields):
            raise TypeError("MultiModalMamba: expected either a config or its fields as keywords, got both or none.")
        self.config = config = config or MultiModalMambaConfig.from_dict(fields)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        # Smaller, and a narrow model takes long to find its first words, for the head is tied to them. Larger, and they
        # drown the image, and the model first has to unlearn to repeat each word.
        std = 0.4 / math.sqrt(config.dim)
        nn.init.normal_(self.embedding.weight, std=std)
        self.embedding.weight._no_weight_decay = True  # type: ignore[attr-defined]  # rare words would fade
        self.backbone = _backbone(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=std)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        images: Float[Tensor, "n c y x"] | Sequence[Float[Tensor, "c y x"]] | ImageTokens | None = None,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        loss_count: Int[Tensor, ""] | int | None = None,
        state: ModelState | None = None,
        return_state: bool = False,
        return_embeddings: bool = False,
        last_only: bool = False,
    ) -> ModelOutput:
        """Read texts and the images in them.

        Args:
            input_ids: Tokens, `(b, l)`.
            images: All images, in the order in which their marks stand, row by row: pixels of one size `(n, c, y, x)`,
                a list of `(c, y, x)`, or what `backbone.encode` made of them. None or n = 0: there are none.
            attention_mask: True, or 1, for a real token, `(b, l)`; padding may stand anywhere. None: all are real.
            cu_seqlens: Cumulative lengths `(s+1,)` of s texts packed into one row; b is 1 then.
            labels: Tokens to predict, `(b, l)`, each at its own place, as in `input_ids`; -100, padding, and the marks
                of images are left out.
            loss_count: What the sum over the labels is divided by, where a step is made of several batches; None: their
                number, so that the loss is their mean. Where it is given, a batch may have none of them.
            state: What earlier tokens of the rows left behind; it is read, never written.
            return_state: Return the state behind the last real token of each row as well.
            return_embeddings: Return the embeddings in place of logits.
            last_only: Compute logits, or embeddings, behind the last real token of each row alone.
        Returns:
            Logits or embeddings, and the loss and the state where asked for.
        Raises:
            InputError: Tokens, images and marks, or masks do not fit the model or one another.
        """
        check_tokens(input_ids, self.config.vocab_size)
        if labels is not None:
            if last_only or return_embeddings:
                raise InputError(
                    "MultiModalMamba: `labels` ask for all logits, got last_only or return_embeddings. "
                    "Leave the one or the other out."
                )
            check_labels(labels, input_ids, self.config.vocab_size, IGNORE)
        images = None if images is None else check_pixels(images)
        texts = self._find_texts(input_ids, images, attention_mask, cu_seqlens)
        if state is not None:
            check_state(state, texts.rows, self.backbone)
        tokens, read = self.embedding(input_ids), self._encode(images)
        marked = read is not None and self.config.image_token_id is not None
        if attention_mask is None and cu_seqlens is None and not marked:
            hidden, state = read_rows(self.backbone, tokens, read, state)
        else:
            hidden, state = read_packed(self.backbone, texts, tokens.flatten(0, 1), read, state)
            hidden = hidden.unflatten(0, input_ids.shape)
        state = state if return_state else None
        if last_only:
            hidden = hidden.flatten(0, 1)[texts.last_token]
        if return_embeddings:
            return ModelOutput(None, None, hidden, state)
        logits = apply_linear(self.lm_head, hidden)
        loss = None if labels is None else self._loss(logits, texts, input_ids, labels, loss_count)
        return ModelOutput(logits, loss, None, state)

    @property
    def checkpointing(self) -> bool:
        """Whether training keeps the inputs of the Mamba layers alone and computes the rest again: True to set it."""
        return self.backbone.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.backbone.checkpointing = value

    @torch.no_grad()
    def step(self, input_ids: Int[Tensor, " b"], state: ModelState) -> Float[Tensor, "b v"]:
        """Read one token of each row: what a loop that decodes calls.

        It gives what `forward` gives for a text of one token, and is faster. A mark is read by `forward` alone.

        Args:
            input_ids: The tokens, `(b,)`.
            state: What came before; it holds the new tokens on return.
        Returns:
            The logits behind them, `(b, vocab_size)`.
        Raises:
            InputError: Tokens or state do not fit the model or one another, or a token is a mark.
        """
        check_next(input_ids, self.config)
        check_state(state, input_ids.shape[0], self.backbone)
        return self._step(input_ids, state)

    def _step(self, input_ids: Tensor, state: ModelState) -> Tensor:
        """`step` without checks, which wait for the device: for tokens that are known to fit."""
        tokens = self.embedding(input_ids)
        if isinstance(self.backbone, MultiModalMambaBlock):
            tokens, state.groups = go_on(self.backbone.fusion, tokens[:, None], state.groups)
            tokens = tokens[:, 0]
        hidden = self.backbone.step(tokens, state.layers)
        state.length += 1
        return apply_linear(self.lm_head, hidden)

    def generate(
        self,
        input_ids: Int[Tensor, "b l"],
        images: Float[Tensor, "n c y x"] | Sequence[Float[Tensor, "c y x"]] | ImageTokens | None = None,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        state: ModelState | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
        stop_tokens: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
    ) -> Generation:
        """Write tokens behind prompts, the likeliest ones if nothing else is asked for.

        Nothing is kept for a token but the token: the memory that it takes does not depend on how many there are. The
        mark of an image is never written. No gradient is recorded. Call `eval()` before: a model in
        training mode reads the prompts with dropout.

        Args:
            input_ids: Prompts, `(b, l)`: at least one real token in each row.
            images: As in `forward`.
            attention_mask: As in `forward`; prompts of several lengths are padded on the left or on the right.
            state: What came before the prompts; it is read, never written.
            max_new_tokens: How many tokens a row gets at most.
            temperature: Divides the logits before a token is drawn; 0: the likeliest token is taken.
            top_k: Draw from the k likeliest tokens; None: from all.
            top_p: Draw from the fewest of the likeliest tokens that together have at least this probability; None: all.
            repetition_penalty: The logits of tokens that stand in the prompt or were written are divided by it where
                they are positive, and else multiplied by it; 1 changes nothing. A state does not say which tokens it
                has read: those of earlier calls do not count.
            seeds: A number for each row. What a row draws depends on it and on the row's own text alone, and is the
                same however the writing is split into calls that go on from a state. None: torch's generator gives
                them.
            stop_tokens: A row ends with any of these. None: `config.eos_token_id`, if there is one.
            stop_strings: A row ends as soon as its new text has one of these, wherever tokens begin and end. The tokens
                that hold it stay in the result, with what the last of them has behind it.
            decode: Tokens to text, as `tokenizer.decode`; `stop_strings` ask for it.
        Returns:
            The tokens, how many each row has, why it ended, and the state, from which the next call goes on.
        Raises:
            InputError: A prompt is empty, a value is out of its range, or two contradict each other; or as `forward`.
        """
        stream = self.stream(
            input_ids,
            images,
            attention_mask=attention_mask,
            state=state,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seeds=seeds,
            stop_tokens=stop_tokens,
            stop_strings=stop_strings,
            decode=decode,
        )
        return stream.collect()

    def stream(
        self,
        input_ids: Int[Tensor, "b l"],
        images: Float[Tensor, "n c y x"] | Sequence[Float[Tensor, "c y x"]] | ImageTokens | None = None,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        state: ModelState | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
        stop_tokens: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
    ) -> TokenStream:
        """As `generate`, whose arguments it takes, but to be iterated: it gives the tokens of each step.

        The prompts are read before it returns; a token is written when it is asked for, and not kept.

        Returns:
            An iterator over `(b,)` tokens, with the `reasons`, `lengths` and `state` so far.
        Raises:
            InputError: As `generate`.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
        stopping = Stopping(
            max_new_tokens=max_new_tokens,
            tokens=self.config.eos_token_id if stop_tokens is None else stop_tokens,
            strings=stop_strings,
            decode=decode,
            vocab_size=self.config.vocab_size,
        )
        with torch.no_grad():
            out = self(input_ids, images, attention_mask=attention_mask, state=state, return_state=True, last_only=True)
        check_prompts(attention_mask)
        endings = (self.config.pad_token_id, self.config.eos_token_id)
        return TokenStream(
            self._step,
            out.logits,
            out.state,
            seen=None if repetition_penalty == 1 else find_seen(input_ids, attention_mask, self.config.vocab_size),
            seeds=find_seeds(seeds, input_ids, sampling),
            sampling=sampling,
            stopping=stopping,
            mark=self.config.image_token_id,
            padding=next((token for token in endings if token is not None), 0),
        )

    def _find_texts(
        self, input_ids: Tensor, images: Tensor | ImageTokens | None, mask: Tensor | None, bounds: Tensor | None
    ) -> Texts:
        b, l = input_ids.shape
        token = self.config.image_token_id
        count = 0 if images is None else (images.tokens if isinstance(images, ImageTokens) else images).shape[0]
        if bounds is None:
            bounds = torch.arange(0, b * l + 1, l, device=input_ids.device)
        else:
            check_bounds(bounds, input_ids, mask, illustrated=count > 0 and token is None)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else check_mask(mask, input_ids)
        marked = None if token is None else mask.flatten() & (input_ids == token).flatten()
        check_images(count, bounds.shape[0] - 1, marked, token)
        return find_texts(mask.flatten(), bounds, marked, count)

    def _encode(self, images: Tensor | ImageTokens | None) -> ImageTokens | None:
        if images is None or isinstance(images, ImageTokens):
            return images
        if not isinstance(self.backbone, MultiModalMambaBlock):
            raise InputError(
                "MultiModalMamba: `images` must be None in a model without an encoder, got images. "
                "Make it of a config with image_size."
            )
        return self.backbone.encode(images)

    def _loss(
        self, logits: Tensor, texts: Texts, input_ids: Tensor, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        tokens, token = input_ids.flatten(), self.config.image_token_id
        wanted = torch.ones_like(tokens, dtype=torch.bool) if token is None else tokens != token
        targets = next_tokens(texts, labels.flatten(), wanted, IGNORE)
        if count is None and not torch.compiler.is_compiling() and bool((targets == IGNORE).all()):
            raise InputError(
                "MultiModalMamba: `labels` must have a token to predict, got none. "
                "The first token of a text, padding and marks are not predicted."
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        if count is None:
            return F.cross_entropy(logits, targets, ignore_index=IGNORE)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") / count


def _backbone(config: MultiModalMambaConfig) -> MambaStack:
    layers = {name: getattr(config, name) for name in ("d_state", "expand", "d_conv", "norm_eps")}
    layers |= config.mixer_options
    if config.image_size is None:
        return MambaStack(config.dim, config.depth, config.dropout, **layers)
    encoder = VisionTransformer(
        ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            dropout=config.dropout,
            **config.encoder_options,
        )
    )
    return MultiModalMambaBlock(
        config.dim,
        config.depth,
        config.dropout,
        config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        encoder_dim=config.encoder_dim,
        encoder_depth=config.encoder_depth,
        encoder_heads=config.encoder_heads,
        fusion_method=config.fusion_method,
        fusion_options=config.fusion_options,
        encoder=encoder,
        **layers,
    )
