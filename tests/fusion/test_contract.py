"""The built-in methods and the example plug-in follow the contract."""

import pytest
import torch

from mmm_fusion import available
from mmm_fusion.methods import MLP, Add, Concat, VisualExpert
from mmm_fusion.testing import FusionContract
from mmm_fusion_film import Film


class TestAdd(FusionContract):
    method = Add


class TestConcat(FusionContract):
    method = Concat


class TestMLP(FusionContract):
    method = MLP


class TestWideMLP(FusionContract):
    method = MLP
    options = {"ratio": 2.5}


class TestVisualExpert(FusionContract):
    method = VisualExpert


class TestVisualExpertWithHeadsOfOddWidth(FusionContract):
    method = VisualExpert
    options = {"ratio": 1}
    dim, heads, image_dim = 20, 4, 30


class TestFilm(FusionContract):
    method = Film


def test_every_method_is_put_to_the_test() -> None:
    tested = {value.method for value in globals().values() if isinstance(value, type) and hasattr(value, "method")}
    assert tested >= set(available())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [Add, Concat, MLP, VisualExpert, Film])
def test_autocast_is_close_to_full_precision(method: type, dtype: torch.dtype) -> None:
    fuse = method(16, 12, heads=2, dropout=0.0)
    text, image = torch.randn(2, 5, 16), torch.randn(2, 6, 12)
    with torch.autocast("cpu", dtype):
        tokens = fuse(text, image).tokens
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, fuse(text, image).tokens, rtol=0.05, atol=0.05)
