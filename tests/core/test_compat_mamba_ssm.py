"""The functions of mamba_ssm and causal_conv1d on our kernels, against float64 loops over positions, channel-first."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmm_core.compat.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
    system,
)
from mmm_core.testing import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, rms_error_ratio, ulps_apart

WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
HALVES = [torch.float16, torch.bfloat16]
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


def scan_oracle(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """`selective_scan_fn` from its formula."""
    b, e, l = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h = A.new_zeros(b, e, A.shape[1])
    ys = []
    for t in range(l):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * at(B, A, t) * u[:, :, t, None]
        y = (h * at(C, A, t)).sum(-1)
        ys.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(ys, dim=2)
    y = y if D is None else y + D[:, None] * u
    y = y if z is None else y * z / (1 + torch.exp(-z))
    return (y, h) if return_last_state else y


def at(x, A, t):
    """B or C of each channel at one position, (b, e, n)."""
    if x.ndim == 2:
        return x[None]
    x = x[:, None] if x.ndim == 3 else x
    now = torch.complex(x[..., 2 * t], x[..., 2 * t + 1]) if A.is_complex() else x[..., t]
    return now.repeat_interleave(A.shape[0] // now.shape[1], dim=1)


def conv_oracle(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    """`causal_conv1d_fn` from its formula; the final states too."""
    (b, e, l), k = x.shape, weight.shape[1]
    before = x.new_zeros(b, e, k - 1) if initial_states is None else initial_states
    row = torch.cat((before, x), dim=2)
    sequence = torch.zeros(b, l, dtype=torch.int64) if seq_idx is None else seq_idx
    outside = torch.full((b, k - 1), 0 if seq_idx is None else -1)
    sequence = torch.cat((outside, sequence), dim=1)
    ys = []
    for t in range(l):
        taps = [row[:, :, t + j] * weight[:, j] for j in range(k)]
        here = sequence[:, t + k - 1]
        y = sum(tap * (sequence[:, t + j] == here)[:, None] for j, tap in enumerate(taps))
        y = y if bias is None else y + bias
        y = y if activation is None else y * torch.sigmoid(y)
        ys.append(y * (here >= 0)[:, None])
    return torch.stack(ys, dim=2), row[:, :, l:]


def inner_oracle(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None, C=None,
    D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True, checkpoint_lvl=1,
    b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6,
):  # fmt: skip
    """`mamba_inner_fn` from its description."""
    x, z = xz.chunk(2, dim=1)
    x, _ = conv_oracle(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    columns = torch.einsum("pe,bel->bpl", x_proj_weight, x)
    r, s = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    delta = torch.einsum("er,brl->bel", delta_proj_weight, columns[:, :r])
    made = {"B": columns[:, r : r + s], "C": columns[:, -s:]}
    pair = {}
    for name, given, bias in (("B", B, B_proj_bias), ("C", C, C_proj_bias)):
        if given is not None:
            pair[name] = given
            continue
        y = made[name] if bias is None else made[name] + bias[:, None]
        pair[name] = y if not A.is_complex() else y.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)
    for name, weight in (("B", b_rms_weight), ("C", c_rms_weight)):
        if weight is not None:
            pair[name] = rms(pair[name], weight, b_c_dt_rms_eps)
    if dt_rms_weight is not None:
        delta = rms(delta, dt_rms_weight, b_c_dt_rms_eps)
    y = scan_oracle(x, delta, A, **pair, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
    out = torch.einsum("oe,bel->blo", out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias


def rms(x, weight, eps):
    """Along the next to last axis."""
    return x / (x.square().mean(-2, keepdim=True) + eps).sqrt() * weight[:, None]


def tensors(shapes, complex_names=()):
    """Normally distributed tensors by name."""
    random = torch.Generator().manual_seed(0)
    dtypes = {name: torch.complex64 if name in complex_names else torch.float32 for name in shapes}
    return {name: torch.randn(shape, generator=random, dtype=dtypes[name]) for name, shape in shapes.items()}


def leaves(inputs, wide=False):
    """The inputs as leaves, in float64 where that is asked for; whole numbers stay what they are."""
    return {
        name: x.detach().to(WIDE[x.dtype] if wide else x.dtype).requires_grad_() if x.dtype in WIDE else x
        for name, x in inputs.items()
    }


def run(function, inputs, options):
    """Outputs of a call and the gradients of all inputs through all of them."""
    outputs = function(**inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    random = torch.Generator().manual_seed(1)
    widths = [torch.complex128 if y.is_complex() else torch.float64 for y in outputs]
    cotangents = [
        torch.randn(y.shape, generator=random, dtype=width).to(y.dtype)
        for y, width in zip(outputs, widths, strict=True)
    ]
    wanted = {name: x for name, x in inputs.items() if x.requires_grad}
    return outputs, dict(zip(wanted, torch.autograd.grad(outputs, list(wanted.values()), cotangents), strict=True))


def assert_matches(function, oracle, inputs, wide=False, **options):
    """Outputs and every gradient are the oracle's, to the tolerances of the kernels."""
    dtype = torch.float64 if wide else torch.float32
    outputs, grads = run(function, leaves(inputs, wide), options)
    expected, expected_grads = run(oracle, leaves(inputs, wide=True), options)
    assert len(outputs) == len(expected)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert ratio(actual, wanted) <= OUTPUT_TOLERANCE[dtype]
    for name, grad in grads.items():
        assert grad.dtype == leaves(inputs, wide)[name].dtype
        assert ratio(grad, expected_grads[name]) <= GRADIENT_TOLERANCE[dtype], name


def ratio(actual, expected):
    if actual.is_complex():
        actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
    return rms_error_ratio(actual, expected)


def scan_inputs(l=17, b=2, e=6, n=3, B="varying", C="varying", complex_A=False, groups=2, leave_out=()):
    """Arguments of a scan; B and C are each `constant`, `varying` or `grouped`."""
    length = 2 * l if complex_A else l
    of = {"constant": (e, n), "varying": (b, n, length), "grouped": (b, groups, n, length)}
    shapes = {"u": (b, e, l), "delta": (b, e, l), "A": (e, n), "B": of[B], "C": of[C], "D": (e,), "z": (b, e, l)}
    shapes["delta_bias"] = (e,)
    names = {"A"} | {name for name, kind in (("B", B), ("C", C)) if kind == "constant"}
    inputs = tensors(shapes, complex_names=names if complex_A else ())
    A = inputs["A"]
    inputs["A"] = torch.complex(-A.real.exp(), A.imag) if complex_A else -A.exp()
    return {name: x for name, x in inputs.items() if name not in leave_out}


kinds = pytest.mark.parametrize(
    ("B", "C"),
    [("varying", "varying"), ("grouped", "grouped"), ("varying", "grouped"), ("grouped", "varying"),
     ("constant", "constant"), ("constant", "varying"), ("grouped", "constant")],
)  # fmt: skip


@kinds
@pytest.mark.parametrize("complex_A", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_scan_matches_the_oracle(B, C, complex_A, wide):
    inputs = scan_inputs(B=B, C=C, complex_A=complex_A)
    options = {"delta_softplus": True, "return_last_state": True}
    assert_matches(selective_scan_fn, scan_oracle, inputs, wide, **options)


@pytest.mark.parametrize("leave_out", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
@pytest.mark.parametrize("B", ["varying", "constant"])
@pytest.mark.parametrize("complex_A", [False, True])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_scan_without_some_of_its_inputs(leave_out, B, complex_A, delta_softplus):
    inputs = scan_inputs(B=B, complex_A=complex_A, leave_out=leave_out)
    if not delta_softplus:
        inputs |= {name: inputs[name].abs() for name in ("delta", "delta_bias") if name in inputs}
    assert_matches(selective_scan_fn, scan_oracle, inputs, delta_softplus=delta_softplus)


@pytest.mark.parametrize("l", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("complex_A", [False, True])
def test_scan_in_pieces_of_any_length(l, complex_A):
    inputs = scan_inputs(l=l, B="constant", complex_A=complex_A)
    options = {"delta_softplus": True, "return_last_state": True}
    assert_matches(selective_scan_fn, scan_oracle, inputs, **options)


@pytest.mark.parametrize(("B", "C"), [("grouped", "varying"), ("constant", "grouped")])
@pytest.mark.parametrize("complex_A", [False, True])
def test_scan_gradcheck(B, C, complex_A):
    inputs = leaves(scan_inputs(l=3, b=2, e=2, n=2, B=B, C=C, complex_A=complex_A), wide=True)

    def scan(*arguments):
        return selective_scan_fn(*arguments, delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@halves
@pytest.mark.parametrize("B", ["varying", "constant"])
def test_scan_in_half_precision_is_the_rounded_float32_result(dtype, B):
    inputs = scan_inputs(B=B)
    rounded = {name: x.to(dtype) for name, x in inputs.items()}
    y, state = selective_scan_fn(**rounded, delta_softplus=True, return_last_state=True)
    wide = {name: x.float() for name, x in rounded.items()}
    expected, expected_state = selective_scan_fn(**wide, delta_softplus=True, return_last_state=True)
    assert y.dtype == dtype
    assert ulps_apart(y, expected.to(dtype)) <= 1
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, expected_state)


@halves
def test_a_complex_scan_takes_half_precision(dtype):
    inputs = scan_inputs(complex_A=True)
    rounded = {name: x if x.is_complex() else x.to(dtype) for name, x in inputs.items()}
    y, state = selective_scan_fn(**rounded, return_last_state=True)
    expected = selective_scan_fn(**{name: x if x.is_complex() else x.float() for name, x in rounded.items()})
    assert ulps_apart(y, expected.to(dtype)) <= 1
    assert state.dtype == torch.complex64


@pytest.mark.parametrize("B", ["varying", "constant"])
@pytest.mark.parametrize("complex_A", [False, True])
def test_a_scan_of_nothing(B, complex_A):
    inputs = leaves(scan_inputs(l=0, B=B, complex_A=complex_A))
    y, state = selective_scan_fn(**inputs, return_last_state=True)
    assert y.shape == (2, 6, 0)
    assert state.shape == (2, 6, 3)
    assert not state.any()


def test_a_scan_reads_any_layout_and_copies_no_sequence(monkeypatch):
    seen = []
    whole = system.selective_scan
    monkeypatch.setattr(system, "selective_scan", lambda *a, **k: seen.extend(a) or whole(*a, **k))
    inputs = scan_inputs()
    y = selective_scan_fn(**inputs)
    assert {x.data_ptr() for x in seen} == {x.data_ptr() for x in inputs.values()}
    channel_last = {name: x.mT.contiguous().mT if x.ndim == 3 else x for name, x in inputs.items()}
    assert torch.equal(selective_scan_fn(**channel_last), y)


def test_positions_of_the_arguments():
    inputs = scan_inputs()
    y, state = selective_scan_fn(*inputs.values(), True, True)
    expected, last = selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    assert torch.equal(y, expected)
    assert torch.equal(state, last)


def conv_inputs(b=2, e=6, l=17, k=4, bias=True, initial_states=False):
    shapes = {"x": (b, e, l), "weight": (e, k)}
    shapes |= {"bias": (e,)} if bias else {}
    shapes |= {"initial_states": (b, e, k - 1)} if initial_states else {}
    return tensors(shapes)


def conv_with_states(**arguments):
    return causal_conv1d_fn(**arguments, return_final_states=True)


def conv_alone(**arguments):
    return conv_oracle(**arguments)[0]


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("initial_states", [False, True])
@pytest.mark.parametrize(("l", "k", "bias"), [(17, 4, True), (2, 4, True), (1, 2, False), (9, 1, True), (33, 7, True)])
@pytest.mark.parametrize("wide", [False, True])
def test_convolution_and_final_states_match_the_oracle(activation, initial_states, l, k, bias, wide):
    inputs = conv_inputs(l=l, k=k, bias=bias, initial_states=initial_states)
    assert_matches(conv_with_states, conv_oracle, inputs, wide, activation=activation)


SEQUENCES = [
    [[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 5, 5, 5]],
    [[5, 5, 5, 5, 5, 5, 5, 5, 5], [5, 5, 5, 3, 3, 0, 0, 9, 9]],  # both rows end and begin with 5
    [[-1, -1, 0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, 0, 0, 0, -1]],
    [[7, 7, 2, 2, 2, 2, 7, 7, 7], [0, 0, 1, 1, 1, 0, 0, 0, 0]],  # back to a number, beyond what a tap reaches
]


@pytest.mark.parametrize("seq_idx", SEQUENCES, ids=range(len(SEQUENCES)))
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_convolution_of_several_sequences_a_row(seq_idx, activation, whole, k):
    inputs = conv_inputs(l=9, k=k) | {"seq_idx": torch.tensor(seq_idx, dtype=whole)}
    assert_matches(causal_conv1d_fn, conv_alone, inputs, activation=activation)
    inputs["x"] = inputs["x"].mT.contiguous().mT
    assert_matches(causal_conv1d_fn, conv_alone, inputs, activation=activation)


def test_padding_alone():
    inputs = conv_inputs(l=3) | {"seq_idx": torch.full((2, 3), -1)}
    assert not causal_conv1d_fn(**inputs).any()


@pytest.mark.parametrize("options", [{}, {"initial_states": True}], ids=str)
def test_convolution_gradcheck(options):
    inputs = leaves(conv_inputs(b=2, e=2, l=3, k=3, **options), wide=True)

    def conv(*arguments):
        return conv_with_states(**dict(zip(inputs, arguments, strict=True)), activation="silu")

    assert torch.autograd.gradcheck(conv, tuple(inputs.values()))


@halves
def test_convolution_in_half_precision_is_the_rounded_float32_result(dtype):
    inputs = {name: x.to(dtype) for name, x in conv_inputs(initial_states=True).items()}
    out, states = causal_conv1d_fn(**inputs, return_final_states=True, activation="silu")
    expected, _ = conv_oracle(**{name: x.double() for name, x in inputs.items()}, activation="silu")
    assert out.dtype == states.dtype == dtype
    assert ulps_apart(out, expected.float().to(dtype)) <= 1


def test_final_states_go_where_they_are_wanted():
    inputs, room = conv_inputs(), torch.empty(2, 6, 3)
    out, states = causal_conv1d_fn(**inputs, return_final_states=True, final_states_out=room)
    assert states is room
    assert torch.equal(room, inputs["x"][..., -3:])
    assert torch.equal(out, causal_conv1d_fn(**inputs))


def test_final_states_out_holds_no_graph_and_the_gradient_flows_all_the_same():
    room = torch.empty(2, 6, 3)
    for _ in range(2):  # a buffer that lives longer than a step of training
        inputs = leaves(conv_inputs())
        _, states = causal_conv1d_fn(**inputs, return_final_states=True, final_states_out=room)
        states.sum().backward()
        assert torch.equal(inputs["x"].grad[..., -3:], torch.ones(2, 6, 3))
        assert torch.equal(room, states)
        assert not room.requires_grad


def test_tokens_one_by_one_give_the_whole_convolution():
    inputs = conv_inputs(l=7)
    whole = causal_conv1d_fn(**inputs, activation="silu")
    state = torch.zeros(2, 6, 4)  # as wide as the taps, as mamba_ssm keeps it
    x = inputs.pop("x")
    tokens = [causal_conv1d_update(x[..., t], state, **inputs, activation="silu") for t in range(7)]
    torch.testing.assert_close(torch.stack(tokens, dim=2), whole)


def test_steps_give_the_whole_scan():
    inputs = scan_inputs(l=7, B="grouped", C="grouped", groups=3)
    whole, last = selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    heads = {name: inputs[name].unflatten(0, (3, 2)) for name in ("A", "D", "delta_bias")}
    state = torch.zeros(2, 3, 2, 3)
    for t in range(7):
        u, delta, z = (inputs[name][..., t].unflatten(1, (3, 2)) for name in ("u", "delta", "z"))
        B, C = inputs["B"][..., t], inputs["C"][..., t]
        y = selective_state_update(
            state, u, delta, heads["A"], B, C, heads["D"], z, heads["delta_bias"], dt_softplus=True
        )
        torch.testing.assert_close(y.flatten(1), whole[..., t])
    torch.testing.assert_close(state.flatten(1, 2), last)


def inner_inputs(b=2, l=9, e=4, n=3, r=2, o=5, k=4, B="made", C="made", complex_A=False, norms=(), leave_out=()):
    """Arguments of `mamba_inner_fn`; B and C are each `made`, or a kind of `scan_inputs`."""
    s, length = (2 * n, 2 * l) if complex_A else (n, l)
    of = {"constant": (e, n), "varying": (b, n, length), "grouped": (b, 2, n, length)}
    columns = r + s * ((B == "made") + (C == "made"))
    shapes = {
        "xz": (b, 2 * e, l), "conv1d_weight": (e, 1, k), "conv1d_bias": (e,), "x_proj_weight": (columns, e),
        "delta_proj_weight": (e, r), "out_proj_weight": (o, e), "out_proj_bias": (o,), "A": (e, n),
    }  # fmt: skip
    shapes |= {name: of[kind] for name, kind in (("B", B), ("C", C)) if kind != "made"}
    shapes |= {"D": (e,), "delta_bias": (e,)}
    shapes |= {f"{name}_proj_bias": (s,) for name, kind in (("B", B), ("C", C)) if kind == "made"}
    shapes |= {f"{name}_rms_weight": (e,) if name == "dt" else (n,) for name in norms}
    names = {"A"} | {name for name, kind in (("B", B), ("C", C)) if kind == "constant"}
    inputs = tensors(shapes, complex_names=names if complex_A else ())
    A = inputs["A"]
    inputs["A"] = torch.complex(-A.real.exp(), A.imag) if complex_A else -A.exp()
    return {name: None if name in leave_out else x for name, x in inputs.items()}


INNER = {
    "all made": {},
    "B given": {"B": "varying"},
    "C given": {"C": "grouped"},
    "both given": {"B": "constant", "C": "varying"},
    "both constant": {"B": "constant", "C": "constant"},
    "complex": {"complex_A": True},
    "complex, B given": {"complex_A": True, "B": "varying"},
    "complex, C given": {"complex_A": True, "C": "constant"},
    "norms": {"norms": ("b", "c", "dt")},
    "norm of a given B": {"norms": ("b",), "B": "varying"},
    "no biases": {"leave_out": ("conv1d_bias", "out_proj_bias", "B_proj_bias", "C_proj_bias", "delta_bias", "D")},
}


@pytest.mark.parametrize("sizes", INNER.values(), ids=INNER.keys())
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_inner_matches_the_oracle(sizes, wide, delta_softplus):
    inputs = inner_inputs(**sizes)
    if not delta_softplus:
        inputs["A"] = inputs["A"] / 100  # negative steps make the state grow
    absent = {name: None for name, x in inputs.items() if x is None}
    inputs = {name: x for name, x in inputs.items() if x is not None}
    assert_matches(mamba_inner_fn, inner_oracle, inputs, wide, **absent, delta_softplus=delta_softplus)


def test_inner_gradcheck():
    inputs = leaves(inner_inputs(b=2, l=2, e=2, n=2, r=1, o=2, k=2, norms=("b", "c", "dt")), wide=True)
    assert torch.autograd.gradcheck(lambda *x: mamba_inner_fn(**dict(zip(inputs, x, strict=True))), (*inputs.values(),))


def test_the_eps_of_the_norms():
    inputs = inner_inputs(norms=("b",))
    expected = inner_oracle(**{name: x.double() for name, x in inputs.items()}, b_c_dt_rms_eps=0.5)
    assert rms_error_ratio(mamba_inner_fn(**inputs, b_c_dt_rms_eps=0.5), expected) <= OUTPUT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("checkpoint_lvl", [0, 1])
def test_checkpoint_lvl_changes_nothing(checkpoint_lvl):
    inputs = inner_inputs()
    assert torch.equal(mamba_inner_fn(**inputs, checkpoint_lvl=checkpoint_lvl), mamba_inner_fn(**inputs))


@halves
@pytest.mark.parametrize("norms", [(), ("b", "c", "dt")], ids=str)
def test_inner_in_half_precision_with_its_parameters_in_float32(dtype, norms):
    """As mamba_ssm has it: the projections in half precision, what the kernels take in float32."""
    inputs = inner_inputs(norms=norms)
    projections = ("xz", "x_proj_weight", "delta_proj_weight", "out_proj_weight", "out_proj_bias")
    inputs = {name: x.to(dtype) if name in projections else x for name, x in inputs.items()}
    expected = inner_oracle(**{name: x.double() for name, x in inputs.items()})
    out = mamba_inner_fn(**inputs)
    assert out.dtype == dtype
    assert rms_error_ratio(out, expected) <= {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]


def test_inner_under_autocast():
    inputs = leaves(inner_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mamba_inner_fn(**inputs)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert rms_error_ratio(out, inner_oracle(**{name: x.double() for name, x in inputs.items()})) <= 1.5e-2
    assert all(x.grad.dtype == torch.float32 for x in inputs.values())


class Mixer(nn.Module):
    """A Mamba layer as one writes it on mamba_ssm: whole texts by the fused call or by parts, and single tokens."""

    def __init__(self, dim=6, n=4, k=4, r=2):
        super().__init__()
        e = 2 * dim
        self.n, self.r = n, r
        self.in_proj = nn.Linear(dim, 2 * e, bias=False)
        self.conv1d = nn.Conv1d(e, e, k, groups=e, padding=k - 1)
        self.x_proj = nn.Linear(e, r + 2 * n, bias=False)
        self.dt_proj = nn.Linear(r, e)
        self.A_log = nn.Parameter(torch.rand(e, n))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, dim)

    def forward(self, x, fused=True):
        xz = self.in_proj.weight @ x.transpose(1, 2)  # (b, 2e, l)
        A = -torch.exp(self.A_log)
        if fused:
            return mamba_inner_fn(
                xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                self.out_proj.weight, self.out_proj.bias, A, None, None, self.D,
                delta_bias=self.dt_proj.bias, delta_softplus=True,
            )  # fmt: skip
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d_fn(x=x, weight=self.conv1d.weight.squeeze(1), bias=self.conv1d.bias, activation="silu")
        dt, B, C = torch.split(self.x_proj(x.transpose(1, 2)), [self.r, self.n, self.n], dim=-1)
        dt = (self.dt_proj.weight @ dt.transpose(1, 2)).contiguous()
        y, _ = selective_scan_fn(
            x, dt, A, B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous(), self.D, z=z,
            delta_bias=self.dt_proj.bias, delta_softplus=True, return_last_state=True,
        )  # fmt: skip
        return self.out_proj(y.transpose(1, 2))

    def step(self, token, conv_state, ssm_state):
        x, z = self.in_proj(token).chunk(2, dim=-1)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        dt, B, C = torch.split(self.x_proj(x), [self.r, self.n, self.n], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)
        A = -torch.exp(self.A_log)
        y = selective_state_update(ssm_state, x, dt, A, B, C, self.D, z=z, dt_bias=self.dt_proj.bias, dt_softplus=True)
        return self.out_proj(y)


def test_a_layer_written_for_mamba_ssm():
    torch.manual_seed(0)
    mixer, x = Mixer(), torch.randn(3, 11, 6)
    outs = [mixer(x, fused=fused) for fused in (True, False)]
    torch.testing.assert_close(*outs)
    grads = [torch.autograd.grad(out.square().sum(), list(mixer.parameters())) for out in outs]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    conv_state, ssm_state = torch.zeros(3, 12, 4), torch.zeros(3, 12, 4)
    tokens = [mixer.step(x[:, t], conv_state, ssm_state) for t in range(11)]
    torch.testing.assert_close(torch.stack(tokens, dim=1), outs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("complex_A", [False, True])
def test_a_scan_in_pieces_compiles_to_one_graph(complex_A):
    inputs = scan_inputs(l=70, C="constant", complex_A=complex_A)
    scan = torch.compile(selective_scan_fn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(scan(**inputs, delta_softplus=True), selective_scan_fn(**inputs, delta_softplus=True))


def test_a_layer_compiles_to_one_graph():
    torch.manual_seed(0)
    mixer, x = Mixer(), torch.randn(3, 11, 6)
    for fused in (True, False):
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, fused=fused), mixer(x, fused=fused))
    states = [torch.zeros(3, 12, 4) for _ in range(4)]
    step = torch.compile(mixer.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(step(x[:, 0], *states[:2]), mixer.step(x[:, 0], *states[2:]))
    torch.testing.assert_close(states[:2], states[2:])


def test_the_device_meta_tells_the_shapes():
    with torch.device("meta"):
        y, state = selective_scan_fn(
            torch.empty(2, 6, 9), torch.empty(2, 6, 9), torch.empty(6, 3), torch.empty(6, 3), torch.empty(2, 3, 9),
            return_last_state=True,
        )  # fmt: skip
        out = selective_state_update(
            *(torch.empty(s) for s in ((2, 3, 5, 4), (2, 3, 5), (2, 3, 5), (3, 5, 4), (2, 4), (2, 4)))
        )
    assert (y.shape, state.shape, out.shape) == ((2, 6, 9), (2, 6, 3), (2, 3, 5))
