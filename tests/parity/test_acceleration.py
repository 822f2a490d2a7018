"""What `accelerate` takes, leaves as it is, and gives back."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, Mamba2Config, Mamba2Model, MambaConfig, Trainer, TrainingArguments
from transformers.models.mamba.modeling_mamba import MambaMixer

from mmm_core import BackendUnavailable
from mmm_core.compat.transformers import accelerate
from mmm_core.testing import rms_error_ratio

TOLERANCE = 1e-5
CLASSES = {"mamba": "2 MambaMixer", "falcon_mamba": "2 FalconMambaMixer", "jamba": "3 JambaMambaMixer"}


@pytest.fixture
def ids():
    return torch.randint(1, 50, (3, 13))


def runs_on_ours(model, ids):
    """Whether a call reaches our kernels, of which none may run here."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("MMM_CORE_BACKEND", "triton")
        try:
            model(ids)
        except BackendUnavailable:
            return True
    return False


@pytest.mark.parametrize("kind", CLASSES)
def test_undo(build, kind, ids):
    model = build(kind)
    before = model(ids).logits
    acceleration = accelerate(model)
    assert repr(acceleration) == f"<Acceleration: {CLASSES[kind]}>"
    assert list(acceleration.layers.values()) == CLASSES[kind][:1] * 0 + [CLASSES[kind][2:]] * int(CLASSES[kind][0])
    assert all(type(model.get_submodule(name)).__name__ == cls for name, cls in acceleration.layers.items())
    assert runs_on_ours(model, ids)
    acceleration.undo()
    assert repr(acceleration) == f"<Acceleration: {CLASSES[kind]}, undone>"
    assert not runs_on_ours(model, ids)
    assert model(ids).logits.equal(before)
    acceleration.undo()
