"""The `Mamba` layer: against its definition, its start, its state, and its errors."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmm_core import Mamba, MambaState, ShapeError, native_library, selective_scan
from mmm_core.layers import native_step
from mmm_core.layers.native_step import native_stack
from mmm_core.testing import OUTPUT_TOLERANCE, rms_error_ratio


def plain_mamba(layer, x):
    """The layer written out in float64, as the paper has it: no scan, one state a token."""
    p = {name: value.double() for name, value in layer.state_dict().items()}
    bias = {name: p.get(f"{name}.bias") for name in ("in_proj", "conv1d", "out_proj")}
    inner, n = p["A_log"].shape
    x, z = F.linear(x.double(), p["in_proj.weight"], bias["in_proj"]).split(inner, dim=-1)
    taps = p["conv1d.weight"].shape[-1]
    x = F.silu(F.conv1d(F.pad(x.mT, (taps - 1, 0)), p["conv1d.weight"], bias["conv1d"], groups=inner).mT)
    rank = p["dt_proj.weight"].shape[1]
    dt, B, C = F.linear(x, p["x_proj.weight"]).split([rank, n, n], dim=-1)
    if layer.selection_norm is not None:
        ones = torch.ones(max(rank, n), dtype=torch.float64)
        dt, B, C = (
            y
            / (y.square().mean(-1, keepdim=True) + layer.selection_norm).sqrt()
            * p.get(f"{name}_layernorm.weight", ones[: y.shape[-1]])
            for name, y in (("dt", dt), ("b", B), ("c", C))
        )
    dt = F.softplus(F.linear(dt, p["dt_proj.weight"], p["dt_proj.bias"]))
    h, ys = torch.zeros(len(x), inner, n, dtype=torch.float64), []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * -p["A_log"].exp())
        h = decay * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + p["D"] * x[:, t])
    return F.linear(torch.stack(ys, dim=1) * F.silu(z), p["out_proj.weight"], bias["out_proj"])


OPTIONS = [
    {},
    {"d_state": 5, "d_conv": 2, "expand": 3, "dt_rank": 7},
    {"bias": True, "conv_bias": False, "d_state": 1, "d_conv": 1},
    {"selection_norm": 1e-2},
    {"selection_norm": 1e-3, "selection_norm_weight": True, "d_state": 5, "dt_rank": 3},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_it_is_the_mamba_of_the_paper(options, dtype):
    layer, x = Mamba(20, **options).to(dtype), torch.randn(3, 33, 20, dtype=dtype)
    for name, parameter in layer.named_parameters():
        if name == "A_log" or "layernorm" in name:
            parameter.normal_()
    assert rms_error_ratio(layer(x), plain_mamba(layer, x)) <= OUTPUT_TOLERANCE[dtype]


def test_parameters_have_the_names_and_shapes_of_mamba_ssm():
    shapes = {name: tuple(p.shape) for name, p in Mamba(40).named_parameters()}
    assert shapes == {
        "A_log": (80, 16),
        "D": (80,),
        "in_proj.weight": (160, 40),
        "conv1d.weight": (80, 1, 4),
        "conv1d.bias": (80,),
        "x_proj.weight": (3 + 32, 80),
        "dt_proj.weight": (80, 3),
        "dt_proj.bias": (80,),
        "out_proj.weight": (40, 80),
    }


def test_norms_of_what_is_selected_have_the_names_of_jamba():
    plain = dict(Mamba(40).named_parameters())
    assert dict(Mamba(40, selection_norm=1e-6).named_parameters()).keys() == plain.keys()
    weighted = dict(Mamba(40, selection_norm=1e-6, selection_norm_weight=True).named_parameters())
    added = {name: tuple(weighted[name].shape) for name in weighted.keys() - plain.keys()}
    assert added == {
        "dt_layernorm.weight": (3,),
        "b_layernorm.weight": (16,),
        "c_layernorm.weight": (16,),
    }


def test_the_start_is_mamba_ssms():
    layer = Mamba(1024, expand=4)
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(4096, 16))
    assert (layer.D == 1).all()
    dt = F.softplus(layer.dt_proj.bias.detach()).log10()
    assert -3 <= dt.min() < -2.9
    assert -1.1 < dt.max() <= -1 + 1e-6
    assert abs(dt.mean() + 2) < 0.05  # log-uniform between 0.001 and 0.1
    assert abs(dt.std() - 2 / math.sqrt(12)) < 0.05
    assert layer.dt_proj.weight.abs().max() <= 64**-0.5
    assert layer.dt_proj.weight.std().item() == pytest.approx(64**-0.5 / math.sqrt(3), rel=0.05)


def test_no_weight_decay_on_the_state_space():
    marked = {name for name, p in Mamba(8).named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_proj.bias"}


@pytest.mark.parametrize("cuts", [(7, 15), (1, 2), (32,), (33, 33), ()])
def test_prefill_continuation_and_steps_give_the_whole(cuts):
    layer, x = Mamba(12), torch.randn(2, 33, 12)
    with torch.no_grad():
        whole, final = layer(x, return_state=True)
        pieces, state = [], None
        bounds = [0, *cuts, *range(max(cuts, default=0) + 1, 34)]
        for start, stop in pairwise(bounds):
            piece, state = layer(x[:, start:stop], state, return_state=True)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


def test_a_state_is_read_and_never_written():
    layer = Mamba(8)
    _, state = layer(torch.randn(2, 5, 8), return_state=True)
    before = [tensor.clone() for tensor in state]
    first, _ = layer(x := torch.randn(2, 1, 8), state, return_state=True)
    second, _ = layer(x, state, return_state=True)
    assert torch.equal(first, second)
    assert all(map(torch.equal, state, before))
    assert [tuple(tensor.shape) for tensor in state] == [(2, 16, 3), (2, 16, 16)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_steps_in_place_give_what_forward_gives(options, dtype):
    layer, x = Mamba(20, **options).to(dtype), torch.randn(2, 9, 20, dtype=dtype)
    _, state = layer(x[:, :3], return_state=True)
    places = [tensor.data_ptr() for tensor in state]
    expected, other = [], state
    for t in range(3, 9):
        y, other = layer(x[:, t : t + 1], other, return_state=True)
        expected.append(y[:, 0])
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": None, "atol": None}
    for t in range(3, 9):
        torch.testing.assert_close(layer.step(x[:, t], state), expected[t - 3], **tolerance)
    torch.testing.assert_close(state, other, **tolerance)
    assert [tensor.data_ptr() for tensor in state] == places


def test_a_step_records_no_gradient_and_sees_parameters_change():
    layer, x = Mamba(8), torch.randn(2, 8, requires_grad=True)
    _, state = layer(torch.randn(2, 5, 8), return_state=True)
    state = MambaState(*(tensor.detach() for tensor in state))
    copy = MambaState(*(tensor.clone() for tensor in state))
    y = layer.step(x, state)
    assert not y.requires_grad
    assert not state.ssm.requires_grad
    layer.A_log.data.add_(1)
    assert not torch.equal(layer.step(x, MambaState(*(tensor.clone() for tensor in copy))), y)


class LowRank(nn.Module):
    """As a library for fine-tuning wraps a layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def with_x_bias(layer):
    layer.x_proj = nn.Linear(layer.x_proj.in_features, layer.x_proj.out_features)


def half_precise(layer):
    layer.bfloat16()
    layer.A_log.data, layer.D.data = layer.A_log.data.float(), layer.D.data.float()


def with_spread_parameters(layer):
    for parameter in layer.parameters():
        parameter.data = torch.stack((parameter.data, torch.full_like(parameter.data, torch.nan)), dim=-1)[..., 0]


def wrapped(name):
    return lambda layer: setattr(layer, name, LowRank(getattr(layer, name)))


def selecting_by(layer, x):
    """A selection of one's own."""
    selected = Mamba._selected_by(layer, x)
    return {**selected, "B": 2 * selected["B"]}


class Selective(Mamba):
    _selected_by = selecting_by


class Renamed(Mamba):
    """Nothing of it is another."""


# How a layer was changed, the rows, and whether a step of it is one call of the kernel.
STEPS = {
    "plain": (lambda layer: None, 1, True),
    "eight rows": (lambda layer: None, 8, True),
    "nine rows": (lambda layer: None, 9, False),
    "double": (lambda layer: layer.double(), 3, True),
    "half": (lambda layer: layer.half(), 3, True),
    "bfloat16 beside float32": (half_precise, 2, True),
    "x_proj with a bias": (with_x_bias, 2, True),
    "in_proj wrapped": (wrapped("in_proj"), 2, False),
    "x_proj wrapped": (wrapped("x_proj"), 2, False),
    "out_proj wrapped": (wrapped("out_proj"), 2, False),
    "D wider than the rest": (lambda layer: setattr(layer.D, "data", layer.D.double()), 2, False),
    "transposed in memory": (with_spread_parameters, 2, False),
    "a class that selects otherwise": (lambda layer: setattr(layer, "__class__", Selective), 2, False),
    "another selection": (lambda layer: setattr(layer, "_selected_by", partial(selecting_by, layer)), 2, False),
    "a class of one's own": (lambda layer: setattr(layer, "__class__", Renamed), 2, True),
}


@pytest.mark.parametrize(("change", "b", "one"), STEPS.values(), ids=STEPS.keys())
@torch.no_grad()
def test_a_step_is_one_call_of_the_kernel_or_goes_by_the_operations(change, b, one, monkeypatch):
    layer = Mamba(20, d_state=16, bias=True)
    layer.A_log.normal_()
    change(layer)
    x = torch.randn(b, 4, 20, dtype=layer.dt_proj.weight.dtype)
    _, state = layer(x[:, :3], return_state=True)
    expected, after = layer(x[:, 3:], state, return_state=True)
    seen = []
    monkeypatch.setattr(native_step, "call", lambda *call: (seen.append(call[0]), native_library.call(*call)))
    y = layer.step(x[:, 3], state)
    assert seen == ["mmm_core_step"] * one
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if x.dtype.itemsize == 2 else {"rtol": None, "atol": None}
    torch.testing.assert_close(y, expected[:, 0], **tolerance)
    torch.testing.assert_close(state, after, **tolerance)


@torch.no_grad()
def test_a_step_sees_hooks_and_the_wrong_state():
    layer, x = Mamba(8), torch.randn(2, 8)
    _, state = layer(torch.randn(2, 5, 8), return_state=True)
    kept = MambaState(*(tensor.clone() for tensor in state))
    y, seen = layer.step(x, state), []
    layer.x_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(layer.step(x, kept), y)
    assert seen == [(2, layer.dt_rank + 32)]
    other = MambaState(torch.zeros(3, 16, 3), torch.zeros(2, 16, 16))
    with pytest.raises(ShapeError) as raised:
        layer.step(x, other)
    assert str(raised.value) == ("causal_conv1d_update: `state` must be (b, e, k-1) = (2, 16, 3), got (3, 16, 3).")


def a_stack(dtype, depth=3, **options):
    """Layers with a norm before each, a token's residual stream, and their states behind a few tokens."""
    norms = [nn.RMSNorm(20, eps=1e-5).to(dtype) for _ in range(depth)]
    mixers = [Mamba(20, **options).to(dtype) for _ in range(depth)]
    for norm in norms:
        norm.weight.data.normal_(1)
    _, states = zip(*(mixer(torch.randn(2, 3, 20, dtype=dtype), return_state=True) for mixer in mixers), strict=True)
    stream = torch.promote_types(dtype, torch.float32)
    return norms, mixers, torch.randn(2, 20, dtype=stream), [MambaState(*map(torch.clone, each)) for each in states]


def layer_by_layer(norms, mixers, x, states):
    for norm, mixer, state in zip(norms, mixers, states, strict=True):
        normed = F.rms_norm(x, (20,), norm.weight.to(x.dtype), norm.eps)
        x = x + mixer.step(normed.to(norm.weight.dtype), state)
    return x


@pytest.mark.parametrize("options", [*(each for each in OPTIONS if "selection_norm" not in each), {"d_state": 16}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_layers_in_one_call_give_what_they_give_one_by_one(options, dtype):
    norms, mixers, x, states = a_stack(dtype, **options)
    others, before = [MambaState(*map(torch.clone, each)) for each in states], x.clone()
    expected = layer_by_layer(norms, mixers, x, others)
    y = native_stack(norms, mixers, x, states)
    assert torch.equal(x, before)
    half = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": None, "atol": None}
    torch.testing.assert_close(y, expected, **half)
    torch.testing.assert_close(states, others, **half)
    assert torch.equal(native_stack([], [], x, []), x)


STACKS = {
    "a norm without weight": lambda norms, mixers: norms.__setitem__(1, nn.RMSNorm(20, elementwise_affine=False)),
    "a norm without eps": lambda norms, mixers: norms.__setitem__(2, nn.RMSNorm(20)),
    "another norm": lambda norms, mixers: norms.__setitem__(0, nn.LayerNorm(20)),
    "a norm in another dtype": lambda norms, mixers: norms[1].bfloat16(),
    "a norm with a hook": lambda norms, mixers: norms[1].register_forward_hook(lambda *call: None),
    "a norm of another width": lambda norms, mixers: norms.__setitem__(1, nn.RMSNorm(10, eps=1e-5)),
    "a wider layer": lambda norms, mixers: (norms[1].double(), mixers[1].double()),
    "a wrapped projection": lambda norms, mixers: wrapped("x_proj")(mixers[2]),
    "a layer of another width": lambda norms, mixers: mixers.__setitem__(2, Mamba(10)),
}


@pytest.mark.parametrize("change", STACKS.values(), ids=STACKS.keys())
@torch.no_grad()
def test_layers_that_do_not_fit_one_call_are_left_as_they_are(change):
    norms, mixers, x, states = a_stack(torch.float32)
    before = [MambaState(*map(torch.clone, each)) for each in states]
    assert native_stack(norms, mixers, x, before) is not None
    before = [MambaState(*map(torch.clone, each)) for each in states]
    change(norms, mixers)
    assert native_stack(norms, mixers, x, states) is None
    torch.testing.assert_close(states, before, rtol=0, atol=0)


@torch.no_grad()
def test_a_stream_that_does_not_fit_is_left_as_it_is(monkeypatch):
    norms, mixers, x, states = a_stack(torch.float32)
    for other in (x.double(), x.bfloat16(), x.repeat(5, 1), x[:1], x[:, :10]):
        assert native_stack(norms, mixers, other, states) is None
    with torch.enable_grad():
        assert native_stack(norms, mixers, x, states) is None
    monkeypatch.setenv("MMM_CORE_BACKEND", "reference")
    assert native_stack(norms, mixers, x, states) is None


def test_a_state_made_for_autograd_knows_that_a_step_wrote_it():
    layer, x = Mamba(8), torch.randn(2, 8)
    _, state = layer(torch.randn(2, 5, 8), return_state=True)
    loss = (state.ssm * state.ssm).sum() + (state.conv * state.conv).sum()
    layer.step(x, MambaState(*(tensor.detach() for tensor in state)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_step(dtype):
    layer, x = Mamba(520).to(dtype), torch.randn(3, 520, dtype=dtype)
    _, state = layer(torch.randn(3, 4, 520, dtype=dtype), return_state=True)
    results = []
    for count in range(1, 9):
        torch.set_num_threads(count)
        after = MambaState(*(tensor.clone() for tensor in state))
        results.append([layer.step(x, after), *after])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_step_compiles_to_one_graph():
    layer, x = Mamba(8), torch.randn(2, 8)
    _, state = layer(torch.randn(2, 5, 8), return_state=True)
    state = MambaState(*(tensor.detach() for tensor in state))
    other = MambaState(*(tensor.clone() for tensor in state))
    y = torch.compile(layer.step, fullgraph=True, backend="aot_eager")(x, other)
    torch.testing.assert_close(y, layer.step(x, state))
    torch.testing.assert_close(other, state)


def test_packed_texts_do_not_see_each_other():
    layer, x = Mamba(8), torch.randn(1, 12, 8)
    with torch.no_grad():
        packed, state = layer(x, return_state=True, cu_seqlens=torch.tensor([0, 4, 4, 12]))
        alone = [layer(x[:, :4], return_state=True), layer(x[:, 4:], return_state=True)]
    torch.testing.assert_close(packed, torch.cat([y for y, _ in alone], dim=1))
    for k, (_, single) in zip((0, 2), alone, strict=True):
        torch.testing.assert_close(state.ssm[k : k + 1], single.ssm)
        torch.testing.assert_close(state.conv[k : k + 1], single.conv)


def test_packed_texts_go_on_from_their_states():
    layer, x = Mamba(8), torch.randn(1, 9, 8)
    _, state = layer(torch.randn(2, 4, 8), return_state=True)
    bounds = torch.tensor([0, 3, 9])
    packed = layer(x, state, cu_seqlens=bounds)
    for k, span in enumerate((slice(0, 3), slice(3, 9))):
        alone = layer(x[:, span], MambaState(*(tensor[k : k + 1] for tensor in state)))
        torch.testing.assert_close(packed[:, span], alone)


@pytest.mark.parametrize("options", OPTIONS[-2:])
def test_it_is_causal_and_every_parameter_learns(options):
    layer, x = Mamba(8, **options), torch.randn(2, 9, 8, requires_grad=True)
    y = layer(x)
    (grad,) = torch.autograd.grad(y[:, 4].sum(), x, retain_graph=True)
    assert (grad[:, 5:] == 0).all()
    assert (grad[:, :5] != 0).any(-1).all()
    y.square().sum().backward()
    assert all((p.grad != 0).any() for p in layer.parameters())


def test_it_learns_through_the_state():
    layer = Mamba(8)
    x = torch.randn(1, 6, 8, requires_grad=True)
    _, state = layer(x[:, :3], return_state=True)
    (split,) = torch.autograd.grad(layer(x[:, 3:], state).sum(), x)
    (whole,) = torch.autograd.grad(layer(x)[:, 3:].sum(), x)
    torch.testing.assert_close(split, whole)


def test_compiles_to_one_graph_for_any_length():
    layer = Mamba(8)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for l in (4, 7, 9):
        x = torch.randn(2, l, 8)
        torch.testing.assert_close(compiled(x), layer(x))


def test_bfloat16_stays_bfloat16_and_keeps_a_float32_state():
    layer = Mamba(16).bfloat16()
    y, state = layer(torch.randn(2, 7, 16, dtype=torch.bfloat16), return_state=True)
    assert (y.dtype, state.conv.dtype, state.ssm.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@torch.no_grad()
def test_a_and_the_step_sizes_bias_are_float32_where_the_weights_are_not():
    layer, x = Mamba(16).bfloat16(), torch.randn(2, 7, 16, dtype=torch.bfloat16)
    layer.A_log.normal_()
    layer.dt_proj.bias.normal_(std=3)
    seen = {}

    def scan(u, delta, A, B, C, D, z, delta_bias, **options):
        seen.update(A=A, delta=delta, delta_bias=delta_bias)
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmm_core.layers.mamba.selective_scan", scan)
        layer(x)
    torch.testing.assert_close(seen["A"], -layer.A_log.float().exp(), rtol=1e-6, atol=0)
    assert torch.equal(seen["delta_bias"], layer.dt_proj.bias)
    assert not torch.allclose(seen["delta"], seen["delta"] + layer.dt_proj.bias)


@pytest.mark.parametrize("length", [5, 70])
@pytest.mark.parametrize("gradients", [False, True])
def test_exports_with_any_length(length, gradients):
    layer = Mamba(8)
    with torch.set_grad_enabled(gradients):
        dynamic = {"x": {1: torch.export.Dim("l", min=2)}}
        program = torch.export.export(layer, (torch.randn(2, length, 8),), dynamic_shapes=dynamic)
    targets = [str(node.target) for node in program.graph.nodes if "mmm_core" in str(node.target)]
    assert targets == ["mmm_core.causal_conv1d.default", "mmm_core.selective_scan.default"]
    for l in (3, 16, 33, 100):
        x = torch.randn(2, l, 8)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("options", [OPTIONS[0], *OPTIONS[-2:]])
def test_autocast_is_close_to_float32(options):
    layer, x = Mamba(16, **options), torch.randn(2, 7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="must be at least 1") as raised:
        Mamba(8, d_state=0)
    assert str(raised.value) == "Mamba: `d_state` must be at least 1, got 0."
    with pytest.raises(ValueError, match="needs norms") as raised:
        Mamba(8, selection_norm_weight=True)
    assert str(raised.value) == ("Mamba: `selection_norm_weight` needs norms, got selection_norm=None. Give their eps.")
    with pytest.raises(ShapeError) as raised:
        Mamba(8)(torch.zeros(2, 5, 7))
    assert str(raised.value) == "Mamba: `x` must be (b, l, dim) with dim = 8, got (2, 5, 7)."
    with pytest.raises(ShapeError) as raised:
        Mamba(8).step(torch.zeros(2, 1, 8), MambaState(torch.zeros(2, 16, 3), torch.zeros(2, 16, 16)))
    assert str(raised.value) == "Mamba.step: `x` must be (b, dim) with dim = 8, got (2, 1, 8)."
    with pytest.raises(ShapeError, match="`initial_state` must be"):
        Mamba(8)(torch.zeros(2, 5, 8), MambaState(torch.zeros(2, 8, 3), torch.zeros(2, 16, 16)))


def test_a_step_takes_any_pair_and_names_a_state_of_whole_numbers():
    mamba = Mamba(6)
    for b in (2, 9):  # by the kernel, and by the operations
        x, state = torch.randn(b, 6), mamba(torch.randn(b, 2, 6), return_state=True)[1]
        pair = tuple(each.detach().clone() for each in state)
        torch.testing.assert_close(mamba.step(x, pair), mamba.step(x, MambaState(*map(torch.clone, state))))
        with pytest.raises(TypeError, match=r"`state` must be float16, bfloat16, float32 or float64, got torch.int64"):
            mamba.step(x, MambaState(state.conv.long(), state.ssm))


class Adapted(nn.Module):
    """A dense layer with a product of low rank beside it, as adapters have one."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.extra = linear, nn.Linear(linear.in_features, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.extra(x)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_an_adapter_acts_and_learns(name):
    torch.manual_seed(0)
    mamba, merged = Mamba(16), Mamba(16)
    merged.load_state_dict(mamba.state_dict())
    adapted = Adapted(getattr(mamba, name))
    setattr(mamba, name, adapted)
    with torch.no_grad():
        getattr(merged, name).weight += adapted.extra.weight
    x = torch.randn(2, 5, 16)
    out, state = mamba(x[:, :4], return_state=True)
    expected = merged(x)
    torch.testing.assert_close(out, expected[:, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(mamba.step(x[:, 4], state), expected[:, 4], rtol=0, atol=1e-5)
    out.square().sum().backward()
    assert adapted.extra.weight.grad.abs().max() > 0
