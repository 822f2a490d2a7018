"""`mmm_core.compat.transformers` where transformers is not at hand; with its models, tests/parity."""

import re

import pytest
from torch import nn

from mmm_core.compat.transformers import accelerate


class MambaMixer(nn.Module):
    """Of another library, with a layout of its own."""


@pytest.mark.parametrize("model", [nn.Linear(2, 2), MambaMixer()])
def test_a_module_without_layers_of_transformers(model):
    message = (
        "accelerate: `model` must hold layers of transformers' MambaMixer, FalconMambaMixer, JambaMambaMixer, got "
        f"{type(model).__name__} with none. Pass a Mamba, Falcon-Mamba or Jamba model, or a module that holds one."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        accelerate(model)


def test_no_module():
    with pytest.raises(TypeError) as error:
        accelerate("a path")
    assert str(error.value) == (
        "accelerate: `model` must be a torch.nn.Module, got str. Of a pipeline or a trainer, pass its `model`."
    )
