"""Extreme step sizes, transitions and gates: the native kernels give what the definition gives, and only where it does.

An infinity or a NaN is a result as any other: it must stand in the same places.
"""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from mmm_core import causal_conv1d, selective_scan, selective_state_update
from mmm_core.testing import ConvCase, ScanCase

INF, NAN = float("inf"), float("nan")
VALUES = [0.0, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, INF, -INF, NAN]
TRANSITIONS = [-1e-30, -1e4, -1.0, 0.0, 0.05]
ROW, POSITION, CHANNEL = 1, 2, 3  # where the extreme value stands
PER_ROW = ("output", "final state", "u", "delta", "B", "C", "z", "x", "initial_state")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
softplus = pytest.mark.parametrize("softplus", [False, True], ids=["plain", "softplus"])
values = pytest.mark.parametrize("value", VALUES)


def both_passes(operation, inputs, options, backend):
    """Both outputs and every gradient, by name."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = operation(**leaves, **options, return_final_state=True, backend=backend)
    grads = torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(y) for y in outputs])
    return dict(zip(("output", "final state", *leaves), (*outputs, *grads), strict=True))


def check(operation, inputs, options, name, value):
    """With `value` put into `name`: as the definition, and other rows as without it."""
    calm = both_passes(operation, inputs, options, "native")
    extreme = {key: x.clone() for key, x in inputs.items()}
    extreme[name][ROW, POSITION, CHANNEL] = value
    actual = both_passes(operation, extreme, options, "native")
    expected = both_passes(operation, extreme, options, "reference")
    tolerance = 1e-4 if inputs[name].dtype == torch.float32 else 1e-10
    for key, x in actual.items():
        torch.testing.assert_close(x, expected[key], rtol=tolerance, atol=tolerance, equal_nan=True, msg=key)
        if key in PER_ROW:
            assert torch.equal(x[[0, 2]], calm[key][[0, 2]]), key


def scan_inputs(dtype, transition=None):
    """Three rows over two chunks; in every channel the transition asked for."""
    inputs = {name: x.detach() for name, x in ScanCase(b=3, l=34, e=6, n=3, delta_softplus=False).inputs(dtype).items()}
    inputs["delta"] /= 10  # a positive transition then overflows at the extreme value, and not before
    return inputs if transition is None else inputs | {"A": torch.full_like(inputs["A"], transition)}


@values
@pytest.mark.parametrize("transition", TRANSITIONS)
@softplus
@dtypes
def test_a_step_size_with_a_transition_is_as_defined(value, transition, softplus, dtype):
    check(selective_scan, scan_inputs(dtype, transition), {"delta_softplus": softplus}, "delta", value)


@values
@pytest.mark.parametrize("name", ["u", "z"])
@dtypes
def test_an_input_and_a_gate_are_as_defined(value, name, dtype):
    check(selective_scan, scan_inputs(dtype), {"delta_softplus": True}, name, value)


@values
@pytest.mark.parametrize("activation", [None, "silu"])
@dtypes
def test_the_convolution_of_an_input_is_as_defined(value, activation, dtype):
    inputs = {name: x.detach() for name, x in ConvCase(b=3, l=34).inputs(dtype).items()}
    check(causal_conv1d, inputs, {"activation": activation}, "x", value)


@softplus
@dtypes
def test_a_transition_in_one_channel_touches_no_other(softplus, dtype):
    for transition in (*TRANSITIONS, 1e4, INF, NAN):
        inputs = scan_inputs(dtype)
        calm = selective_scan(**inputs, delta_softplus=softplus, backend="native")
        inputs["A"][CHANNEL, 1] = transition
        out = selective_scan(**inputs, delta_softplus=softplus, backend="native")
        others = [channel for channel in range(6) if channel != CHANNEL]
        assert torch.equal(out[..., others], calm[..., others])


@values
@pytest.mark.parametrize("transition", TRANSITIONS)
@softplus
def test_a_step_is_as_defined(value, transition, softplus, monkeypatch):
    inputs = scan_inputs(torch.float32, transition)
    inputs["delta"][ROW, 0, CHANNEL] = value
    token = {name: x[:, 0] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
    first, results = token.pop("initial_state"), []
    for backend in ("native", "reference"):
        monkeypatch.setenv("MMM_CORE_BACKEND", backend)
        state = first.clone()
        results.append((selective_state_update(state, **token, delta_softplus=softplus), state))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5, equal_nan=True)


def one_position(delta, A, state=2.0, softplus=False):
    """The state after one position with u = B = 3, in float64."""
    one = partial(torch.full, dtype=torch.float64)
    _, final = selective_scan(
        one((1, 1, 1), 3.0),
        one((1, 1, 1), delta),
        one((1, 1), A),
        one((1, 1, 1), 3.0),
        one((1, 1, 1), 1.0),
        delta_softplus=softplus,
        initial_state=one((1, 1, 1), state),
        return_final_state=True,
        backend="native",
    )
    return final.item()


def test_the_results_are_the_documented_ones():
    assert one_position(0.0, -1.0) == 2.0  # no step: the state stays
    assert one_position(20.0, -1e4) == 180.0  # all of the old state is gone
    assert one_position(88.0, -1e-30) == 2.0 + 9 * 88  # none of it is
    assert one_position(-20.0, -1.0) == pytest.approx(2 * torch.tensor(20.0).double().exp().item() - 180, rel=1e-12)
    assert one_position(1e4, 0.5) == INF  # a positive transition overflows
    assert one_position(1e4, 0.5, state=-1.0) == -INF
    assert one_position(INF, -1.0) == INF
    assert one_position(NAN, -1.0) != one_position(NAN, -1.0)
    assert one_position(-1e4, -1.0, softplus=True) == 2.0  # softplus of it is zero
    assert one_position(88.0, -1.0, softplus=True) == pytest.approx(9 * 88, rel=1e-15)  # the identity
    small = F.softplus(torch.tensor(-20.0, dtype=torch.float64)).item()
    assert one_position(-20.0, 0.0, state=0.0, softplus=True) == pytest.approx(9 * small, rel=1e-14)
