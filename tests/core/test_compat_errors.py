"""What the functions of mamba_ssm and causal_conv1d say of wrong arguments: their names, channel-first shapes."""

import pytest
import torch

from mmm_core import ShapeError
from mmm_core.compat.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
)

zeros = torch.zeros

SCAN = {"u": (2, 6, 17), "delta": (2, 6, 17), "A": (6, 3), "B": (2, 3, 17), "C": (2, 3, 17)}
CONV = {"x": (2, 6, 17), "weight": (6, 4)}
TOKEN = {"x": (3, 5), "conv_state": (3, 5, 3), "weight": (5, 4)}
STEP = {"state": (3, 4, 5, 3), "x": (3, 4, 5), "dt": (3, 4, 5), "A": (4, 5, 3), "B": (3, 3), "C": (3, 3)}
INNER = {
    "xz": (2, 8, 9), "conv1d_weight": (4, 1, 4), "conv1d_bias": (4,), "x_proj_weight": (8, 4),
    "delta_proj_weight": (4, 2), "out_proj_weight": (5, 4), "out_proj_bias": (5,), "A": (4, 3),
}  # fmt: skip
KINDS = {
    "": {},
    "B constant": {"B": (4, 3), "x_proj_weight": (5, 4)},
    "B varying": {"B": (2, 3, 9), "x_proj_weight": (5, 4)},
    "C constant": {"C": (4, 3), "x_proj_weight": (5, 4)},
    "A complex": {"x_proj_weight": (14, 4)},
}


def shaped(shapes):
    """Zeros by name, float32."""
    return {name: zeros(shape) for name, shape in shapes.items()}


def assert_raises(function, inputs, change, error, text):
    with pytest.raises(error) as raised:
        function(**inputs | change)
    assert str(raised.value) == f"{function.__name__}: {text}"


SCAN_ERRORS = [
    ({"u": zeros(2, 6)}, ShapeError, "`u` must be (b, e, l), got (2, 6)."),
    ({"delta": zeros(2, 17, 6)}, ShapeError, "`delta` must be (b, e, l) = (2, 6, 17), got (2, 17, 6)."),
    ({"z": zeros(2, 6, 16)}, ShapeError, "`z` must be (b, e, l) = (2, 6, 17), got (2, 6, 16)."),
    ({"A": zeros(5, 3)}, ShapeError, "`A` must be (e, n) with e = 6 and n >= 1, got (5, 3)."),
    ({"A": zeros(6, 0)}, ShapeError, "`A` must be (e, n) with e = 6 and n >= 1, got (6, 0)."),
    ({"D": zeros(1)}, ShapeError, "`D` must be (e,) = (6,), got (1,)."),
    ({"delta_bias": zeros(6, 1)}, ShapeError, "`delta_bias` must be (e,) = (6,), got (6, 1)."),
    ({"B": zeros(2, 17, 3)}, ShapeError, "`B` must be (b, n, l) = (2, 3, 17), got (2, 17, 3). If it is (b, l, n), pass "
     "B.transpose(1, 2)."),
    ({"C": zeros(6)}, ShapeError, "`C` must be (b, n, l) = (2, 3, 17), got (6,)."),
    ({"C": zeros(3, 6)}, ShapeError, "`C` must be (e, n) = (6, 3), got (3, 6)."),
    ({"B": zeros(2, 2, 3, 16)}, ShapeError, "`B` must be (b, g, n, l) = (2, 2, 3, 17), got (2, 2, 3, 16)."),
    ({"B": zeros(2, 4, 3, 17)}, ShapeError, "e = 6 must be divisible by the g = 4 groups of `B`."),
    ({"C": zeros(2, 0, 3, 17)}, ShapeError, "e = 6 must be divisible by the g = 0 groups of `C`."),
    ({"B": zeros(2, 2, 3, 17), "C": zeros(2, 3, 3, 17)}, ShapeError,
     "`B` and `C` must have the same number of groups, got g = 2 and 3."),
    ({"A": zeros(6, 3, dtype=torch.complex64)}, ShapeError, "`B` must be (b, n, 2l) = (2, 3, 34), got (2, 3, 17)."),
    ({"u": zeros(2, 6, 17, dtype=torch.int64)}, TypeError,
     "`u` must be float16, bfloat16, float32 or float64, got torch.int64. Pass u.float()."),
    ({"B": zeros(2, 3, 17, dtype=torch.complex64)}, TypeError,
     "`B` must be float16, bfloat16, float32 or float64, got torch.complex64. Pass B.float()."),
    ({"D": zeros(6, device="meta")}, ValueError,
     "`D` must be on the device of `u` = cpu, got meta. Pass D.to(u.device)."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), SCAN_ERRORS)
def test_a_wrong_argument_of_the_scan_is_named(change, error, text):
    assert_raises(selective_scan_fn, shaped(SCAN), change, error, text)


CONV_ERRORS = [
    ({"x": zeros(6, 17)}, ShapeError, "`x` must be (b, e, l), got (6, 17)."),
    ({"weight": zeros(6, 1, 4)}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got (6, 1, 4). If it is a "
     "Conv1d's (e, 1, k), pass weight.squeeze(1)."),
    ({"weight": zeros(5, 4)}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got (5, 4)."),
    ({"bias": zeros(1)}, ShapeError, "`bias` must be (e,) = (6,), got (1,)."),
    ({"initial_states": zeros(2, 6, 4)}, ShapeError,
     "`initial_states` must be (b, e, k-1) = (2, 6, 3), got (2, 6, 4)."),
    ({"final_states_out": zeros(2, 3, 6)}, ShapeError,
     "`final_states_out` must be (b, e, k-1) = (2, 6, 3), got (2, 3, 6)."),
    ({"activation": "relu"}, ValueError, "`activation` must be None, 'silu' or 'swish', got 'relu'."),
    ({"seq_idx": zeros(2, 16, dtype=torch.int32)}, ShapeError, "`seq_idx` must be (b, l) = (2, 17), got (2, 16)."),
    ({"seq_idx": zeros(2, 17)}, TypeError, "`seq_idx` must be int32 or int64, got torch.float32."),
    ({"seq_idx": torch.tensor([[0] * 17, [0, 1, 1, 0] + [2] * 13])}, ValueError,
     "`seq_idx` must keep the positions of a sequence together, and comes back to a number after 3 positions. "
     "Give each run a number of its own."),
    ({"seq_idx": zeros(2, 17, dtype=torch.int32), "initial_states": zeros(2, 6, 3)}, ValueError,
     "`seq_idx` cannot go with `initial_states`. Leave one of them out."),
    ({"seq_idx": zeros(2, 17, dtype=torch.int32), "return_final_states": True}, ValueError,
     "`seq_idx` cannot go with `return_final_states`. Leave one of them out."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), CONV_ERRORS)
def test_a_wrong_argument_of_the_convolution_is_named(change, error, text):
    assert_raises(causal_conv1d_fn, shaped(CONV), change, error, text)


whole_numbers = torch.zeros(3, dtype=torch.int32)
TOKEN_ERRORS = [
    ({"x": zeros(3)}, ShapeError, "`x` must be (b, e) or (b, e, l), got (3,)."),
    ({"weight": zeros(4, 4)}, ShapeError, "`weight` must be (e, k) with e = 5 and k >= 1, got (4, 4)."),
    ({"conv_state": zeros(3, 5, 2)}, ShapeError,
     "`conv_state` must be (b, e, t) with b = 3, e = 5 and t >= k-1 = 3, got (3, 5, 2)."),
    ({"conv_state": zeros(4, 5, 3)}, ShapeError,
     "`conv_state` must be (b, e, t) with b = 3, e = 5 and t >= k-1 = 3, got (4, 5, 3)."),
    ({"conv_state": zeros(9, 4, 3), "conv_state_indices": whole_numbers}, ShapeError,
     "`conv_state` must be (states, e, t) with e = 5 and t >= k-1 = 3, got (9, 4, 3)."),
    ({"conv_state": zeros(()), "conv_state_indices": whole_numbers}, ShapeError,
     "`conv_state` must be (states, e, t) with e = 5 and t >= k-1 = 3, got ()."),
    ({"cache_seqlens": whole_numbers[:2]}, ShapeError, "`cache_seqlens` must be (b,) = (3,), got (2,)."),
    ({"cache_seqlens": zeros(3)}, TypeError, "`cache_seqlens` must be int32 or int64, got torch.float32."),
    ({"conv_state_indices": whole_numbers[:2]}, ShapeError, "`conv_state_indices` must be (b,) = (3,), got (2,)."),
    ({"conv_state_indices": torch.tensor([0, 1, 3])}, IndexError,
     "`conv_state_indices` must be below the 3 states of `conv_state`, got 3. A negative number stands for padding."),
    ({"activation": "gelu"}, ValueError, "`activation` must be None, 'silu' or 'swish', got 'gelu'."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), TOKEN_ERRORS)
def test_a_wrong_argument_of_a_token_of_the_convolution_is_named(change, error, text):
    inputs = shaped(TOKEN)
    assert_raises(causal_conv1d_update, inputs, change, error, text)
    assert not inputs["conv_state"].any()


STEP_ERRORS = [
    ({"state": zeros(3, 5)}, ShapeError, "`state` must be (b, e, n) or (b, h, e, n), got (3, 5)."),
    ({"x": zeros(3, 20)}, ShapeError, "`x` must be (b, h, e) = (3, 4, 5), got (3, 20)."),
    ({"x": zeros(2, 4, 5)}, ShapeError, "`x` must be (b, h, e) = (3, 4, 5), got (2, 4, 5)."),
    ({"dt": zeros(3, 4)}, ShapeError, "`dt` must be (b, h, e) = (3, 4, 5), got (3, 4)."),
    ({"z": zeros(3, 4, 1)}, ShapeError, "`z` must be (b, h, e) = (3, 4, 5), got (3, 4, 1)."),
    ({"A": zeros(4)}, ShapeError, "`A` must be (h, e, n) = (4, 5, 3), got (4,)."),
    ({"B": zeros(3, 2)}, ShapeError, "`B` must be (b, n) = (3, 3), got (3, 2)."),
    ({"C": zeros(3, 2, 3)}, ShapeError, "`C` must be (b, n) = (3, 3), got (3, 2, 3)."),
    ({"B": zeros(3, 3, 3), "C": zeros(3, 3, 3)}, ShapeError, "h = 4 must be divisible by the g = 3 groups of `B`."),
    ({"D": zeros(4)}, ShapeError, "`D` must be (h, e) = (4, 5), got (4,)."),
    ({"dt_bias": zeros(5)}, ShapeError, "`dt_bias` must be (h, e) = (4, 5), got (5,)."),
    ({"A": zeros(4, 5, 3, dtype=torch.int32)}, TypeError,
     "`A` must be float16, bfloat16, float32 or float64, got torch.int32. Pass A.float()."),
    ({"state_batch_indices": zeros(3)}, TypeError, "`state_batch_indices` must be int32 or int64, got torch.float32."),
    ({"state_batch_indices": torch.tensor([0, -1, 7])}, IndexError,
     "`state_batch_indices` must be below the 3 states of `state`, got 7. A negative number stands for padding."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), STEP_ERRORS)
def test_a_wrong_argument_of_a_step_is_named(change, error, text):
    assert_raises(selective_state_update, shaped(STEP), change, error, text)


INNER_ERRORS = [
    ({"xz": zeros(2, 7, 9)}, "", ShapeError, "`xz` must be (b, 2e, l), got (2, 7, 9)."),
    ({"xz": zeros(8, 9)}, "", ShapeError, "`xz` must be (b, 2e, l), got (8, 9)."),
    ({"A": zeros(8, 3)}, "", ShapeError, "`A` must be (e, n) with e = 4 and n >= 1, got (8, 3)."),
    ({"conv1d_weight": zeros(4, 4)}, "", ShapeError, "`conv1d_weight` must be (e, 1, k), got (4, 4)."),
    ({"conv1d_weight": zeros(8, 1, 4)}, "", ShapeError,
     "`conv1d_weight` must be (e, 1, k) = (4, 1, 4), got (8, 1, 4)."),
    ({"conv1d_bias": zeros(8)}, "", ShapeError, "`conv1d_bias` must be (e,) = (4,), got (8,)."),
    ({"x_proj_weight": zeros(5, 4)}, "", ShapeError, "`x_proj_weight` must be (r+s+s, e) = (8, 4), got (5, 4)."),
    ({"x_proj_weight": zeros(8, 4)}, "B constant", ShapeError,
     "`x_proj_weight` must be (r+s, e) = (5, 4), got (8, 4)."),
    ({"delta_proj_weight": zeros(5, 2)}, "", ShapeError, "`delta_proj_weight` must be (e, r) = (4, 2), got (5, 2)."),
    ({"out_proj_weight": zeros(5, 8)}, "", ShapeError, "`out_proj_weight` must be (o, e) = (5, 4), got (5, 8)."),
    ({"out_proj_bias": zeros(4)}, "", ShapeError, "`out_proj_bias` must be (o,) = (5,), got (4,)."),
    ({"B": zeros(2, 9, 3)}, "B varying", ShapeError,
     "`B` must be (b, n, l) = (2, 3, 9), got (2, 9, 3). If it is (b, l, n), pass B.transpose(1, 2)."),
    ({"C": zeros(4, 2)}, "C constant", ShapeError, "`C` must be (e, n) = (4, 3), got (4, 2)."),
    ({"C_proj_bias": zeros(4)}, "", ShapeError, "`C_proj_bias` must be (s,) = (3,), got (4,)."),
    ({"dt_rms_weight": zeros(2)}, "", ShapeError, "`dt_rms_weight` must be (e,) = (4,), got (2,)."),
    ({"b_rms_weight": zeros(2)}, "", ShapeError, "`b_rms_weight` must be (n,) = (3,), got (2,)."),
    ({"b_rms_weight": zeros(3)}, "B constant", ValueError,
     "`b_rms_weight` needs a varying, real `B`, got a constant one."),
    ({"c_rms_weight": zeros(3), "A": zeros(4, 3, dtype=torch.complex64)}, "A complex", ValueError,
     "`c_rms_weight` needs a varying, real `C`, got a complex one."),
    ({"checkpoint_lvl": 2}, "", ValueError, "`checkpoint_lvl` must be 0 or 1, got 2."),
    ({"out_proj_bias": zeros(5, dtype=torch.int64)}, "", TypeError,
     "`out_proj_bias` must be float16, bfloat16, float32 or float64, got torch.int64. Pass out_proj_bias.float()."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "error", "text"), INNER_ERRORS)
def test_a_wrong_argument_of_inner_is_named(change, kind, error, text):
    assert_raises(mamba_inner_fn, shaped(INNER | KINDS[kind]), change, error, text)
