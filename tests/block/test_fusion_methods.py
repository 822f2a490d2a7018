"""The fusion methods that need a scan, under the contract."""

import pytest
import torch

from mmm_block.methods import CrossMamba, State
from mmm_fusion import ArgumentError
from mmm_fusion.testing import FusionContract


class TestState(FusionContract):
    method = State


class TestSmallState(FusionContract):
    method = State
    options = {"d_state": 3, "d_conv": 2, "expand": 1}


class TestCrossMamba(FusionContract):
    method = CrossMamba


class TestSmallCrossMamba(FusionContract):
    method = CrossMamba
    options = {"d_state": 3, "d_conv": 2, "expand": 1}


@pytest.mark.parametrize("option", ["d_state", "d_conv", "expand"])
@pytest.mark.parametrize("method", [CrossMamba, State])
def test_sizes_are_whole_numbers(method, option) -> None:
    for value in (0, 2.0, True):
        with pytest.raises(ArgumentError) as caught:
            method(8, 6, heads=2, dropout=0.0, **{option: value})
        assert str(caught.value) == (
            f"fusion method '{method.name}': `{option}` must be an int of at least 1, got {value!r}."
        )


def scan(u, delta, A, B, state):
    """The states behind each position of one row, as the definition has them."""
    states = []
    for t in range(len(u)):
        state = torch.exp(delta[t, :, None] * A) * state + delta[t, :, None] * B[t] * u[t, :, None]
        states.append(state)
    return states


def side_by_hand(side, x):
    """u, delta, A, B and C of one row of tokens (l, dim), position by position."""
    x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * side.norm.weight
    x = x @ side.in_proj.weight.T
    taps = side.conv1d.weight[:, 0]
    k = taps.shape[1]
    past = torch.cat([x.new_zeros(k - 1, x.shape[1]), x])
    u = torch.stack([(past[t : t + k].T * taps).sum(dim=1) for t in range(len(x))]) + side.conv1d.bias
    u = u * u.sigmoid()
    rank, n = side.dt_proj.in_features, side.A_log.shape[1]
    dt, B, C = (u @ side.x_proj.weight.T).split([rank, n, n], dim=-1)
    delta = (dt @ side.dt_proj.weight.T + side.dt_proj.bias).exp().log1p()
    return u, delta, -side.A_log.exp(), B, C


@torch.no_grad()
def test_cross_mamba_is_its_formula() -> None:
    torch.manual_seed(0)
    method = CrossMamba(10, 6, heads=2, dropout=0.0, d_state=3, d_conv=3).double()
    text, image = torch.randn(2, 5, 10).double(), torch.randn(2, 7, 6).double()
    image_mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [1] * 7], dtype=torch.bool)
    fused = method(text, image, image_mask=image_mask)
    for row in range(2):
        u, delta, A, B, C = side_by_hand(method.image_side, method.proj(image[row, image_mask[row]]))
        seen, mean = scan(u, delta, A, B, torch.zeros_like(A))[-1], C.mean(dim=0)
        u, delta, A, B, C = side_by_hand(method.text_side, text[row])
        word = text[row] / (text[row].square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * method.text_side.norm.weight
        z = word @ method.z_proj.weight.T
        for t, state in enumerate(scan(u, delta, A, B, torch.zeros_like(A))):
            y = (state @ mean + method.D * u[t] + seen @ C[t]) * z[t] * z[t].sigmoid()
            expected = text[row, t] + y @ method.out_proj.weight.T
            torch.testing.assert_close(fused.tokens[row, t], expected)


@torch.no_grad()
def test_state_reads_the_text_as_the_end_of_a_sequence_that_begins_with_the_image() -> None:
    torch.manual_seed(0)
    method = State(10, 6, heads=2, dropout=0.0).double()
    text, image = torch.randn(2, 5, 10).double(), torch.randn(2, 7, 6).double()
    whole = method.mixer(torch.cat([method.norm_image(method.proj(image)), method.norm_text(text)], dim=1))
    torch.testing.assert_close(method(text, image).tokens, text + whole[:, 7:])
