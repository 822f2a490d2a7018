"""What the tests of the encoder share: small models, and the models that timm made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open

from mmm_vit import VisionTransformer, ViTConfig

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {"image_size": (12, 20), "patch_size": (3, 4), "dim": 16, "depth": 3, "heads": 2}


class FromTimm(NamedTuple):
    """One file of `fixtures/`."""

    config: ViTConfig
    weights: dict[str, torch.Tensor]
    image: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    layer: dict[str, torch.Tensor]


@pytest.fixture
def timm_model():
    """Reads a fixture by its name."""

    def read(name: str) -> FromTimm:
        groups = {"weights": {}, "image": {}, "tokens": {}, "layer": {}}
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
            config = ViTConfig(**json.loads(file.metadata()["config"]))
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                group, _, rest = key.partition("/")
                groups[group][rest] = file.get_tensor(key)
        return FromTimm(config, **groups)

    return read


@pytest.fixture
def make_vit():
    """Makes a small model in eval mode, every parameter of which is random and matters."""

    def make(**changes) -> VisionTransformer:
        torch.manual_seed(1)
        model = VisionTransformer(ViTConfig(**{**SMALL, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def image():
    """Two images of the small model's size."""
    return torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(2))
