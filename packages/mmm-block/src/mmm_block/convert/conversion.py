"""From a checkpoint of another library to one of `MultiModalMamba`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmm_block.convert.encoder import from_vision_tower, with_encoder
from mmm_block.convert.mamba import from_mamba
from mmm_block.convert.sources import read_source
from mmm_block.errors import CheckpointError
from mmm_block.model import MultiModalMamba
from mmm_block.weights import own_tensors, put_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmm_block.config import MultiModalMambaConfig

FUSION = "backbone.fusion."


def assemble(
    config: MultiModalMambaConfig, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> MultiModalMamba:
    """A model of converted weights; its fusion method, if it has one, as it starts.

    Args:
        config: Such as `from_mamba` or `with_encoder` returns.
        weights: The same; copied.
        dtype: Of all floating tensors; None: as in `weights`, and for the fusion method that of the embedding.
    Returns:
        The model, in evaluation mode.
    Raises:
        CheckpointError: The weights are not those of the config.
    """
    model = MultiModalMamba(config)
    narrow = weights["embedding.weight"].dtype if "embedding.weight" in weights else None
    fresh = {name: each.detach() for name, each in own_tensors(model).items() if name.startswith(FUSION)}
    fresh = {name: each.to(narrow) if each.is_floating_point() else each for name, each in fresh.items()}
    put_weights(model, {**weights, **fresh}, "assemble", torch.device("cpu"), dtype)
    return model.eval()


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    **fields: Any,
) -> MultiModalMamba:
    """Read a checkpoint of another library, and save it as one of `MultiModalMamba`.

    Args:
        source: A Mamba language model: a folder, a file of weights with a config.json beside it, or a repository.
        target: A folder that is new or empty.
        encoder: A vision tower, from where `source` may be; None: the model is one without images.
        dtype: As in `assemble`.
        allow_pickle: See `read_source`.
        fields: Fields of the config, for a model with an encoder; see `with_encoder`.
    Returns:
        The model that was saved.
    Raises:
        CheckpointError: A checkpoint cannot be read or is of another kind of model, or something is in `target`.
        ConfigError: A field is out of its range.
        mmm_fusion.FusionError: There is no such fusion method, or it does not take its options.
    """
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{target}: a new or empty folder was expected, got one in use. Name another.")
    config, weights = from_mamba(*read_source(source, allow_pickle=allow_pickle))
    description = f"Converted from {Path(source).name}."
    if encoder is not None:
        tower = from_vision_tower(*read_source(encoder, allow_pickle=allow_pickle))
        config, weights = with_encoder((config, weights), tower, **fields)
        description = (
            f"Put together from {Path(source).name} and {Path(encoder).name}. The fusion method is not trained yet."
        )
    model = assemble(config, weights, dtype)
    model.save_pretrained(folder, model_card_kwargs={"description": description})
    return model
