"""A small model that the tests of models share."""

from collections.abc import Callable

import pytest
import torch

from mmm_block import MultiModalMamba

MARK = 3
SMALL = {
    "vocab_size": 29,
    "dim": 16,
    "depth": 2,
    "d_state": 4,
    "image_size": (16, 24),
    "patch_size": 8,
    "encoder_dim": 12,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "heads": 2,
    "image_token_id": MARK,
}  # 2 x 3 patches


@pytest.fixture(scope="session")
def small() -> Callable[..., MultiModalMamba]:
    """Makes a small model; fields given change it. No gate of it is closed, and its words are far apart."""

    def make(**changes: object) -> MultiModalMamba:
        torch.manual_seed(0)
        model = MultiModalMamba(**SMALL | changes).eval()
        with torch.no_grad():
            model.embedding.weight.normal_(std=0.5)
            for parameter in model.backbone.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)
        return model

    return make
