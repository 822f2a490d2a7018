"""The built-in methods and the example plug-in follow the contract."""

import pytest
import torch

from mmm_fusion.builtin import mmm_fusion_methods
from mmm_fusion.methods import (
    MLP,
    Add,
    Concat,
    CrossAttention,
    Gated,
    LDPv2,
    LowRank,
    Matmul,
    MobileVLM,
    Perceiver,
    QFormer,
    VisualExpert,
)
from mmm_fusion.testing import FusionContract
from mmm_fusion_film import Film


class TestAdd(FusionContract):
    method = Add


class TestConcat(FusionContract):
    method = Concat


class TestCrossAttention(FusionContract):
    method = CrossAttention


class TestNarrowCrossAttention(FusionContract):
    method = CrossAttention
    options = {"ratio": 0.5}
    dim, heads, image_dim = 20, 4, 30


class TestGated(FusionContract):
    method = Gated


class TestLDPv2(FusionContract):
    method = LDPv2


class TestLowRank(FusionContract):
    method = LowRank


class TestLowRankOfRankOne(FusionContract):
    method = LowRank
    options = {"rank": 1}
    dim, heads, image_dim = 20, 4, 30


class TestMatmul(FusionContract):
    method = Matmul


class TestMLP(FusionContract):
    method = MLP


class TestWideMLP(FusionContract):
    method = MLP
    options = {"ratio": 2.5}


class TestMobileVLM(FusionContract):
    method = MobileVLM


class TestPerceiver(FusionContract):
    method = Perceiver


class TestPerceiverOfOneLatent(FusionContract):
    method = Perceiver
    options = {"latents": 1, "depth": 1, "ratio": 0.5}


class TestDeepPerceiver(FusionContract):
    method = Perceiver
    options = {"latents": 5, "depth": 3, "ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestQFormer(FusionContract):
    method = QFormer


class TestDeepQFormer(FusionContract):
    method = QFormer
    options = {"queries": 5, "depth": 3, "ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestVisualExpert(FusionContract):
    method = VisualExpert


class TestVisualExpertWithHeadsOfOddWidth(FusionContract):
    method = VisualExpert
    options = {"ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestFilm(FusionContract):
    method = Film


TESTED = {value.method for value in list(globals().values()) if isinstance(value, type) and hasattr(value, "method")}


def test_every_method_is_put_to_the_test() -> None:
    assert set(mmm_fusion_methods()) <= TESTED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", sorted(TESTED, key=lambda method: method.name))
def test_autocast_is_close_to_full_precision(method: type, dtype: torch.dtype) -> None:
    fuse = method(16, 12, heads=2, dropout=0.0)
    text, image = torch.randn(2, 5, 16), torch.randn(2, 6, 12)
    with torch.autocast("cpu", dtype):
        tokens = fuse(text, image).tokens
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, fuse(text, image).tokens, rtol=0.05, atol=0.05)
