"""Checkpoints that transformers writes say the same as `MultiModalMamba`s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from mmm_block import CheckpointError, MultiModalMamba
from mmm_block.convert import assemble, convert_checkpoint, from_mamba

Build = Callable[..., PreTrainedModel]
IDS = torch.tensor([[1, 5, 3, 10, 2, 49, 0, 7, 7, 21, 33], [7, 7, 0, 1, 4, 2, 2, 9, 48, 30, 11]])
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "sizes": {"expand": 3, "conv_kernel": 3, "time_step_rank": 5, "layer_norm_epsilon": 1e-2},
    "own head": {"tie_word_embeddings": False},
}


def agree(theirs: PreTrainedModel, ours: MultiModalMamba) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_from_memory(build: Build, kind: str, form: str) -> None:
    theirs = build(kind, **FORMS[form])
    agree(theirs, assemble(*from_mamba(theirs.config.to_dict(), theirs.state_dict())))


@pytest.mark.parametrize("size", ["5GB", "5KB"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_from_files(build: Build, tmp_path: Path, kind: str, form: str, size: str) -> None:
    theirs = build(kind, **FORMS[form])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    agree(theirs, MultiModalMamba.from_pretrained(tmp_path / "ours"))


def test_the_norms_of_the_selection_count(build: Build) -> None:
    theirs = build("falcon_mamba", mixer_rms_eps=1e-1)
    agree(theirs, assemble(*from_mamba(theirs.config.to_dict(), theirs.state_dict())))


def test_a_model_without_its_head(build: Build) -> None:
    theirs = build("mamba")
    agree(theirs, assemble(*from_mamba(theirs.config.to_dict(), theirs.backbone.state_dict())))


def test_another_kind_is_refused(build: Build) -> None:
    theirs = build("jamba")
    with pytest.raises(CheckpointError, match="its `model_type` mamba or falcon_mamba, got 'jamba'"):
        from_mamba(theirs.config.to_dict(), theirs.state_dict())


def test_with_a_vision_tower(build: Build, tmp_path: Path) -> None:
    theirs = build("mamba")
    theirs.save_pretrained(tmp_path / "text")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).eval()
    tower.save_pretrained(tmp_path / "tower")
    convert_checkpoint(tmp_path / "text", tmp_path / "ours", encoder=tmp_path / "tower", image_token_id=49)
    ours, images = MultiModalMamba.from_pretrained(tmp_path / "ours"), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        tokens = tower(images).last_hidden_state[:, 1:]
        torch.testing.assert_close(ours.backbone.encode(images).tokens, tokens, rtol=0, atol=1e-4)
