"""The fusion methods that need a scan, under the contract."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

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


@torch.no_grad()
@pytest.mark.parametrize("method", [CrossMamba, State])
def test_what_is_kept_of_a_text_does_not_grow_with_it(method) -> None:
    fuse = method(10, 6, heads=2, dropout=0.0, d_state=3, d_conv=3, expand=2).double()
    memory = fuse.read(torch.randn(2, 7, 6).double())
    for l in (1, 1, 6, 50):
        _, memory = fuse.extend(torch.randn(2, l, 10).double(), memory)
        assert [each.shape for each in memory.past] == [(2, 20, 2), (2, 20, 3)]


@torch.no_grad()
@pytest.mark.parametrize("method", [CrossMamba, State])
def test_the_state_is_that_behind_the_last_real_token(method) -> None:
    torch.manual_seed(0)
    fuse = method(10, 6, heads=2, dropout=0.0).double()
    text, image = torch.randn(3, 6, 10).double(), torch.randn(3, 7, 6).double()
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 1]], dtype=torch.bool)
    _, begun = fuse.extend(torch.randn(3, 4, 10).double(), fuse.read(image))
    _, after = fuse.extend(text.masked_fill(~mask[..., None], float("nan")), begun, text_mask=mask)
    for row in range(3):
        one = torch.tensor([row])
        _, alone = fuse.extend(text[row, mask[row]][None], begun.rows(one))
        for seen, expected in zip(after.rows(one).past, alone.past, strict=True):
            torch.testing.assert_close(seen, expected)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", [CrossMamba, State])
def test_one_graph_serves_texts_of_many_lengths(method, masked: bool) -> None:
    fuse, counter = method(10, 6, heads=2, dropout=0.0).double(), CompileCounter()
    torch.compiler.reset()
    extend = torch.compile(fuse.extend, fullgraph=True, backend=counter)
    memory, graphs = fuse.read(torch.randn(2, 7, 6).double()), []
    for l in (2, 3, 4, 5, 6, 7, 8):
        text, mask = torch.randn(2, l, 10).double(), torch.arange(l) < torch.tensor([[l], [2]])
        given = {"text_mask": mask} if masked else {}
        expected, after = fuse.extend(text, memory, **given)
        tokens, memory = extend(text, memory, **given)
        torch.testing.assert_close(tokens[mask], expected[mask])
        torch.testing.assert_close(memory.past, after.past)
        graphs.append(counter.frame_count)
    assert graphs[3:] == [graphs[3]] * 4
