"""The built-in methods and the example plug-in follow the contract."""

import pytest
import torch

from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import MLP, CrossAttention, LowRank, Perceiver, QFormer, VisualExpert
from mmm_fusion.testing import FusionContract
from mmm_fusion_film import Film

BUILT_IN = mmm_fusion_methods()

for method in BUILT_IN:  # each with its default options: TestAdd, TestConcat and so on
    globals()[f"Test{method.__name__}"] = type(f"Test{method.__name__}", (FusionContract,), {"method": method})
del method


class TestFilm(FusionContract):
    method = Film


# Other options and widths.


class TestWideMLP(FusionContract):
    method = MLP
    options = {"ratio": 2.5}


class TestNarrowCrossAttention(FusionContract):
    method = CrossAttention
    options = {"ratio": 0.5}
    dim, heads, image_dim = 20, 4, 30


class TestLowRankOfRankOne(FusionContract):
    method = LowRank
    options = {"rank": 1}
    dim, heads, image_dim = 20, 4, 30


class TestPerceiverOfOneLatent(FusionContract):
    method = Perceiver
    options = {"latents": 1, "depth": 1, "ratio": 0.5}


class TestDeepPerceiver(FusionContract):
    method = Perceiver
    options = {"latents": 5, "depth": 3, "ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestDeepQFormer(FusionContract):
    method = QFormer
    options = {"queries": 5, "depth": 3, "ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestVisualExpertWithHeadsOfOddWidth(FusionContract):
    method = VisualExpert
    options = {"ratio": 1}
    dim, heads, image_dim = 20, 4, 30


@pytest.mark.parametrize("method", [*BUILT_IN, Film])
def test_autocast_to_float16_is_close_to_full_precision(method: type) -> None:
    fuse = method(16, 12, heads=2, dropout=0.0)
    text, image = torch.randn(2, 5, 16), torch.randn(2, 6, 12)
    with torch.autocast("cpu", torch.float16):
        tokens = fuse(text, image).tokens
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, fuse(text, image).tokens, rtol=0.05, atol=0.05)
