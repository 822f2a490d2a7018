"""`causal_conv1d` and `causal_conv1d_update` against the oracle, and the promises of their contract."""

import os
from functools import partial

import pytest
import torch

from mmm_core import ShapeError, causal_conv1d, causal_conv1d_update
from mmm_core.conv import operator
from mmm_core.testing import CONV_CASES, OUTPUT_TOLERANCE, ConvCase, assert_correct, rms_error_ratio, ulps_apart

BACKENDS = os.environ.get("MMM_CORE_TESTED", "native,chunked,reference").split(",")
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@pytest.mark.parametrize("case", CONV_CASES.values(), ids=CONV_CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_state_and_gradients_match_the_oracle(case, backend, dtype):
    assert_correct(case, partial(causal_conv1d, backend=backend), dtype)


@backends
@pytest.mark.parametrize("case", [ConvCase(l=5, e=2), ConvCase(lengths=(2, 0, 3), e=2, k=3, reverse=True)])
def test_gradcheck_on_both_outputs_and_all_inputs(case, backend):
    inputs = case.inputs(torch.float64)

    def conv(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return causal_conv1d(**named, **case.options(), return_final_state=True, backend=backend)

    assert torch.autograd.gradcheck(conv, tuple(inputs.values()))


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [ConvCase(), ConvCase(lengths=(3, 0, 4), bias=False, reverse=True), ConvCase(bias=False, initial_state=False)],
)
def test_opcheck_forward_and_backward(case, dtype, backend):
    inputs, options = case.inputs(dtype), case.options()
    tensors = (*(inputs.get(name) for name in ("x", "weight", "bias", "initial_state")), options.get("cu_seqlens"))
    torch.library.opcheck(torch.ops.mmm_core.causal_conv1d, (*tensors, True, case.reverse, backend))
    tensors = [None if x is None else x.detach() for x in tensors]
    out, state = torch.ops.mmm_core.causal_conv1d(*tensors, True, case.reverse, backend)
    torch.library.opcheck(
        torch.ops.mmm_core.causal_conv1d_backward, (*tensors, out, state, True, case.reverse, backend)
    )


@backends
def test_the_forced_backend_is_the_one_that_runs(backend, pool, monkeypatch):
    ran = []
    for name in {"chunked", "reference", backend} - {"native"}:
        module = operator.BACKENDS[name]
        for way in {"forward", "update"} & set(dir(module)):
            function = getattr(module, way)
            monkeypatch.setattr(module, way, lambda *a, run=function, name=name: ran.append(name) or run(*a))
    inputs = ConvCase(b=2, l=300, e=128).inputs()  # enough for the native kernels to ask for threads
    causal_conv1d(**inputs, backend=backend)
    monkeypatch.setenv("MMM_CORE_BACKEND", backend)
    causal_conv1d(**inputs)
    causal_conv1d_update(torch.zeros(512, 128), torch.zeros(512, 128, 3), torch.zeros(128, 4))
    ran += ["native"] * len(pool.calls)
    assert ran == [backend] * 3


@backends
def test_autocast_changes_nothing(backend):
    inputs, seen = ConvCase().inputs(), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = causal_conv1d(**inputs, backend=backend)
            seen.append((out, *torch.autograd.grad(out.square().sum(), list(inputs.values()))))
    assert all(torch.equal(x, y) for x, y in zip(*seen, strict=True))


@backends
def test_a_nan_stays_in_its_row(backend):
    x = torch.randn(3, 5, 6)
    x[1, 2] = float("nan")
    out = causal_conv1d(x, torch.randn(6, 4), backend=backend)
    assert out[1].isnan().any()
    assert not out[[0, 2]].isnan().any()


@backends
def test_gradients_of_parameters_accumulate_in_float32(backend):
    x, weight = torch.ones(1, 4096, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    grads = torch.autograd.grad(causal_conv1d(x, weight, bias, backend=backend).sum(), [weight, bias])
    assert [grad.item() for grad in grads] == [4096, 4096]  # a bfloat16 sum of ones stops at 256


def test_compiles_to_one_graph_with_gradients():
    def loss(*tensors):
        out, state = causal_conv1d(*tensors, activation="silu", return_final_state=True)
        return out.sin().sum() + state.cos().sum()

    inputs = list(ConvCase(initial_state=False).inputs().values())
    expected = torch.autograd.grad(loss(*inputs), inputs)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y)


@backends
def test_packed_equals_separate_and_a_nan_stays_in_its_sequence(backend):
    case = ConvCase(lengths=(5, 2, 6))
    inputs = {name: x.detach() for name, x in case.inputs().items()}
    inputs["x"][:, 5:7] = float("nan")
    packed, states = causal_conv1d(**inputs, **case.options(), return_final_state=True, backend=backend)
    assert packed[:, 5:7].isnan().all()
    for k, span in ((0, slice(0, 5)), (2, slice(7, 13))):
        alone = inputs | {"x": inputs["x"][:, span], "initial_state": inputs["initial_state"][k : k + 1]}
        out, state = causal_conv1d(**alone, activation="silu", return_final_state=True, backend=backend)
        torch.testing.assert_close(packed[:, span], out)
        torch.testing.assert_close(states[k : k + 1], state, rtol=0, atol=0)


def test_one_token_at_a_time_gives_the_whole():
    inputs = {name: x.detach() for name, x in ConvCase(l=7).inputs().items()}
    whole, final = causal_conv1d(**inputs, activation="silu", return_final_state=True)
    state = inputs["initial_state"].clone()
    for t in range(7):
        token = inputs["x"][:, t]
        y = causal_conv1d_update(token, state, inputs["weight"], inputs["bias"], activation="silu")
        assert rms_error_ratio(y, whole[:, t]) <= OUTPUT_TOLERANCE[torch.float32]
    assert torch.equal(state, final)


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_the_rounded_float32_result(backend, dtype):
    results = []
    for width in (dtype, torch.float32):
        inputs = {name: x.detach().to(width).requires_grad_() for name, x in ConvCase().inputs(dtype).items()}
        out, state = causal_conv1d(**inputs, activation="silu", return_final_state=True, backend=backend)
        assert out.dtype == state.dtype == width
        cotangent = torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype).to(width)
        grads = torch.autograd.grad((out, state), list(inputs.values()), (cotangent, torch.ones_like(state)))
        results.append((out, state, *grads))
    for half, wide in zip(*results, strict=True):
        assert ulps_apart(half, wide.to(dtype)) <= 1


@backends
def test_any_strides(backend):
    inputs = {name: x.detach() for name, x in ConvCase().inputs().items()}
    odd = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    odd["x"] = torch.cat((inputs["x"], inputs["x"]), dim=-1)[..., 6:]
    torch.testing.assert_close(causal_conv1d(**odd, backend=backend), causal_conv1d(**inputs, backend=backend))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(17, 6)}, ShapeError, "`x` must be (b, l, e), got (17, 6)."),
        ({"weight": torch.zeros(6, 1, 4)}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got (6, 1, 4). "
         "If it is a Conv1d's (e, 1, k), pass weight.squeeze(1)."),
        ({"weight": torch.zeros(6, 0)}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got (6, 0)."),
        ({"weight": torch.zeros(5, 4)}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got (5, 4)."),
        ({"weight": torch.zeros(())}, ShapeError, "`weight` must be (e, k) with e = 6 and k >= 1, got ()."),
        ({"x": torch.zeros(())}, ShapeError, "`x` must be (b, l, e), got ()."),
        ({"bias": torch.zeros(1)}, ShapeError, "`bias` must be (e,) = (6,), got (1,)."),
        ({"initial_state": torch.zeros(2, 6, 4)}, ShapeError,
         "`initial_state` must be (b, e, k-1) = (2, 6, 3), got (2, 6, 4)."),
        ({"activation": "relu"}, ValueError, "`activation` must be None or 'silu', got 'relu'."),
        ({"x": torch.zeros(2, 17, 6, dtype=torch.int64)}, TypeError,
         "`x` must be float16, bfloat16, float32 or float64, got torch.int64. Pass x.float()."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(change, error, text):
    with pytest.raises(error) as raised:
        causal_conv1d(**ConvCase().inputs() | change)
    assert str(raised.value) == f"causal_conv1d: {text}"


def test_a_step_compiles_and_records_no_gradient():
    weight, state = torch.randn(6, 4, requires_grad=True), torch.randn(2, 6, 3)
    other, x = state.clone(), torch.randn(2, 6)
    y = torch.compile(causal_conv1d_update, fullgraph=True, backend="aot_eager")(x, other, weight)
    assert torch.equal(y, causal_conv1d_update(x, state, weight))
    assert torch.equal(other, state)
    assert not y.requires_grad
    assert not state.requires_grad


def test_a_step_names_its_own_arguments():
    with pytest.raises(ShapeError) as raised:
        causal_conv1d_update(torch.zeros(2, 6), torch.zeros(2, 6, 4), torch.zeros(6, 4))
    assert str(raised.value) == "causal_conv1d_update: `state` must be (b, e, k-1) = (2, 6, 3), got (2, 6, 4)."
