"""The model of transformers that holds the modules of a `MultiModalMamba`, and runs its code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import ModelOutput

from mmm_block.checkpoint import CONFIG, NEEDED, look_at_source, naming
from mmm_block.errors import CheckpointError, InputError
from mmm_block.files import read_steady
from mmm_block.inputs import check_images
from mmm_block.model import MultiModalMamba
from mmm_block.transformers.cache import MultiModalMambaCache
from mmm_block.transformers.config import MultiModalMambaHfConfig
from mmm_block.weights import difference, listed

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

NAME = "MultiModalMambaForConditionalGeneration"


@dataclass
class MultiModalMambaOutput(ModelOutput):
    """What the model returns; what was not asked for is None.

    Attributes:
        loss: The cross-entropy of the labels.
        logits: Of the token behind each token, `(b, l, vocab_size)`; at padding they mean nothing.
        cache: What the texts left behind.
    """

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b l v"] | None = None
    cache: MultiModalMambaCache | None = None


class MultiModalMambaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A `MultiModalMamba` for transformers: `Trainer`, PEFT, `pipeline`, and `generate` with beams and the like.

    Parameters have the names that they have in `MultiModalMamba`, and checkpoints are the same.

    Args:
        config: Sizes and options.
    Raises:
        ConfigError: A value is out of its range.
        mmm_fusion.UnknownMethodError: No fusion method has the config's name.
    """

    config: MultiModalMambaHfConfig
    config_class = MultiModalMambaHfConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch
    _is_stateful = True
    _no_split_modules = ["MambaLayer", "Block"]
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}

    def __init__(self, config: MultiModalMambaHfConfig) -> None:
        super().__init__(config)
        where = Path(config.name_or_path, CONFIG) if config.name_or_path else Path(type(config).__name__)
        with naming(config.fusion_source, where):
            core = MultiModalMamba(config.own())
        look_at_source(core.config, config.fusion_source, where)
        self.embedding: nn.Module = core.embedding
        self.backbone = core.backbone
        self.lm_head: nn.Module = core.lm_head
        # One table of modules: what is put in the place of one here, an adapter say, is used there. It is no module
        # of ours by itself, or every parameter would have two names.
        core._modules = self._modules
        self.__dict__["_core"] = core
        self.post_init()

    @property
    def core(self) -> MultiModalMamba:
        """This model as a `MultiModalMamba`: the same modules, with its own `stream`, `step` and the like."""
        core: MultiModalMamba = self.__dict__["_core"]
        core.config, core.training = self.config.own(), self.training
        return core

    def forward(
        self,
        input_ids: Int[Tensor, "b l"] | None = None,
        attention_mask: Bool[Tensor, "b k"] | None = None,
        pixel_values: Float[Tensor, "n c y x"] | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        cache: MultiModalMambaCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Int[Tensor, " k"] = 0,
        num_items_in_batch: Int[Tensor, ""] | int | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> MultiModalMambaOutput | tuple[Any, ...]:
        """Read texts and the images in them.

        Args:
            input_ids: Tokens, `(b, l)`: with a cache, those that are new.
            attention_mask: 1 for a real token, `(b, l)`, or with the tokens of the cache before them; padding may stand
                anywhere.
            pixel_values: All images, `(n, c, y, x)`, in the order of their marks, row by row.
            labels: Tokens to predict, `(b, l)`, each at its own place; -100, padding and marks are left out.
            cache: What earlier tokens of the rows left behind; it holds these as well on return.
            use_cache: Return a cache; None: as `config.use_cache` says, and in training not.
            logits_to_keep: Compute the logits of so many last places, or of these, alone; 0: of all. Of 1, that of the
                last real token of each row is computed.
            num_items_in_batch: What the sum over the labels is divided by; None: their number.
            return_dict: False: return a tuple.
            others: What other models take and this one does not: None each, or False.
        Returns:
            Logits, and the loss and the cache where asked for.
        Raises:
            InputError: Tokens, images and marks, or masks do not fit the model or one another.
        """
        if input_ids is None or any(value is not None and value is not False for value in others.values()):
            names = [name for name, value in others.items() if value is not None and value is not False]
            raise InputError(f"{NAME}: `input_ids` and no more were expected, got {', '.join(names) or 'none'}.")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is None and use_cache:
            cache = MultiModalMambaCache()
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        if cache is not None and cache.state is not None and self._is_step(input_ids, mask, pixel_values, labels):
            loss, logits = None, self.core.step(input_ids[:, 0], cache.state)[:, None]
            cache.update(cache.state, 1)
        else:
            loss, logits = self._read(input_ids, mask, pixel_values, labels, cache, logits_to_keep, num_items_in_batch)
        output = MultiModalMambaOutput(loss, logits, cache if use_cache else None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _is_step(self, input_ids: Tensor, mask: Tensor | None, *others: Tensor | None) -> bool:
        """Whether there is but one real token in each row, and nothing besides."""
        only = input_ids.shape[1] == 1 and mask is None and all(other is None for other in others)
        return only and not torch.is_grad_enabled()

    def _read(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        pixels: Tensor | None,
        labels: Tensor | None,
        cache: MultiModalMambaCache | None,
        keep: int | Tensor,
        count: Tensor | int | None,
    ) -> tuple[Tensor | None, Tensor]:
        """The loss and the logits; the cache holds the tokens then."""
        last = labels is None and isinstance(keep, int) and keep == 1
        kept = slice(-keep, None) if isinstance(keep, int) else keep
        core = self.core
        out = core(
            input_ids,
            pixels,
            attention_mask=mask,
            labels=labels,
            loss_count=count,
            state=cache and cache.state,
            return_state=cache is not None,
            return_embeddings=labels is None,
            last_only=last,
        )
        if cache is not None:
            cache.update(out.state, input_ids.shape[1])
        if labels is not None:
            return out.loss, out.logits[:, kept]
        return None, core.lm_head(out.embeddings[:, None] if last else out.embeddings[:, kept])

    def generate(self, *args: Any, logits_processor: list[LogitsProcessor] | None = None, **kwargs: Any) -> Any:
        """Write tokens behind prompts, by transformers' `generate`; the mark of an image is never written.

        Args:
            args: As those of `GenerationMixin.generate`.
            logits_processor: Processors besides those that the arguments ask for.
            kwargs: As those of `GenerationMixin.generate`, and those of `forward`.
        Returns:
            What `GenerationMixin.generate` returns.
        """
        processors = LogitsProcessorList(logits_processor or [])
        if self.config.image_token_id is not None:
            processors.append(_Unmarked(self.config.image_token_id))
        return super().generate(*args, logits_processor=processors, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: MultiModalMambaCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next call; behind the prompt no row has padding."""
        if cache is not None and not is_first_iteration:
            attention_mask = None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, cache=cache, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **kwargs
        )
        return inputs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes one of ours

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Each row several times, and all of its images with it."""
        pixels, token = kwargs.pop("pixel_values", None), self.config.image_token_id
        if pixels is not None and token is not None and input_ids is not None:
            marked, mask = input_ids == token, kwargs.get("attention_mask")
            if mask is not None:
                marked &= mask[:, -input_ids.shape[1] :].bool()
            check_images(len(pixels), len(input_ids), marked.flatten(), token)
            each_row = pixels.split(marked.sum(1).tolist())
            pixels = torch.cat([images.repeat(expand_size, 1, 1, 1) for images in each_row])
        elif pixels is not None:
            pixels = pixels.repeat_interleave(expand_size, dim=0)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs if pixels is None else {**kwargs, "pixel_values": pixels}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model that this class or `MultiModalMamba` saved: all of its weights, or an error.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the hub.
            args: As those of `PreTrainedModel.from_pretrained`.
            output_loading_info: Return what was loaded as well.
            kwargs: As those of `PreTrainedModel.from_pretrained`, and fields of the config.
        Returns:
            The model, in evaluation mode.
        Raises:
            CheckpointError: Config and weights do not fit, or a file of weights is damaged.
            ConfigError: The config has an unknown key or a value out of its range.
            mmm_fusion.UnknownMethodError: Its fusion method is not registered; says where it came from.
        """
        # Never a pickle; and what is of another form is told of below, with the rest.
        kwargs = {"use_safetensors": True, **kwargs, "ignore_mismatched_sizes": True}
        load, source = super().from_pretrained, pretrained_model_name_or_path

        def read(folder: str | os.PathLike[str] | None) -> Any:
            try:
                return load(folder, *args, output_loading_info=True, **kwargs)
            except safetensors.SafetensorError as error:
                raise CheckpointError(
                    f"{source}: whole safetensors files were expected, got one that is damaged: {error}. "
                    "Copy or download it anew."
                ) from error

        if source is None or not os.path.isdir(source) or "subfolder" in kwargs:
            model, info = read(source)
        else:
            model, info = read_steady(Path(source), NEEDED, read)
        missing, unexpected = info["missing_keys"], info["unexpected_keys"]
        wrong = listed(sorted(f"`{name}`" for name, *_ in info["mismatched_keys"]))
        if missing or unexpected or wrong:
            differences = [difference(missing, unexpected), f"of another form: {wrong}" if wrong else ""]
            raise CheckpointError(
                f"{source}: the weights of the model that its config describes were expected; "
                f"{'; '.join(filter(None, differences))}. Take config and weights from one checkpoint."
            )
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place."""
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.lm_head = new_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the modules have drawn their start themselves, and a checkpoint has all."""

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether training keeps the inputs of the Mamba layers alone and computes the rest again."""
        return self.core.checkpointing

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, every_n_layers: int = 1
    ) -> None:
        """Turn it on or off in the layers, which do it in one way alone."""
        used = gradient_checkpointing_func
        function, options = (used.func, used.keywords) if isinstance(used, partial) else (used, {})
        if enable and (function, options, every_n_layers) != (checkpoint, {"use_reentrant": False}, 1):
            raise ValueError(
                f"{NAME}: gradient checkpointing must be that of every layer, with use_reentrant=False and without "
                f"offload, got {options} for every {every_n_layers}. Leave the options out."
            )
        self.core.checkpointing = enable


class _Unmarked(LogitsProcessor):
    """Keeps the mark of an image from being written: it would ask for an image."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, with none for the mark."""
        token = torch.tensor([self.token], device=scores.device)
        return scores.index_fill(1, token, float("-inf"))
