"""The adapter to mamba_ssm's extension, with a stand-in for it: its layout and its rules, on any device."""

import sys
from types import ModuleType

import pytest
import torch

from mmm_core import BackendUnavailable, backends, causal_conv1d, native_library, selective_scan, selective_state_update
from mmm_core.layers import Mamba
from mmm_core.scan import operator
from mmm_core.testing import ConvCase, ScanCase

CASES = {
    "plain": ScanCase(D=False, z=False, delta_bias=False, initial_state=False, delta_softplus=False),
    "everything": ScanCase(initial_state=False),
    "groups": ScanCase(initial_state=False, groups=3),
    "two checkpoints": ScanCase(b=1, l=2049, e=2, n=1, initial_state=False),
}


def channel_first(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """The extension's arguments as the definition takes them."""
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C, *([] if z is None else [z])))
    assert all(x is None or x.dtype == torch.float32 for x in (A, D, delta_bias))
    last = [None if x is None else x.transpose(1, 2) for x in (u, delta, z)]
    projections = [x.permute(0, 3, 1, 2) for x in (B, C)]
    return (*last[:2], A, *projections, D, last[2], delta_bias), {"delta_softplus": delta_softplus}


def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """What the extension returns: the ungated output, its checkpoints, and the gated output."""
    tensors, options = channel_first(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    out, state = selective_scan(*tensors, **options, return_final_state=True, backend="reference")
    states = torch.full((*u.shape[:2], -(-u.shape[2] // 2048), 2 * A.shape[1]), 7.0)
    states[:, :, -1, 1::2] = state
    out = out.transpose(1, 2)
    return [out, states] if z is None else [out, states, out * torch.nn.functional.silu(z)]


def bwd(u, delta, A, B, C, D, z, delta_bias, dout, states, out, dz, delta_softplus, recompute):
    """The gradients in the extension's order; it must be handed what the forward returned."""
    assert dz is None
    assert recompute is False
    expected = fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert torch.equal(states, expected[1])
    assert z is None or torch.equal(out, expected[0])
    assert dout.stride(-1) == 1
    leaves = [None if x is None else x.clone().requires_grad_() for x in (u, delta, A, B, C, D, z, delta_bias)]
    with torch.enable_grad():
        tensors, options = channel_first(*leaves, delta_softplus)
        y = selective_scan(*tensors, **options, backend="reference")
    present = iter(torch.autograd.grad(y, [x for x in leaves if x is not None], dout.transpose(1, 2)))
    du, ddelta, dA, dB, dC, dD, dz, dbias = (None if x is None else next(present) for x in leaves)
    return [du, ddelta, dA, dB, dC, dD, dbias, *([] if z is None else [dz])]


@pytest.fixture(autouse=True)
def extension(monkeypatch):
    """A module in the place of the extension, which can then run on the CPU."""
    module = ModuleType("selective_scan_cuda")
    module.fwd, module.bwd = fwd, bwd
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", module)
    monkeypatch.setattr(backends, "_MISSING", frozenset({"triton"}))
    monkeypatch.setitem(backends._NEEDS, "mamba_ssm", "cpu")
    return module


def both(case, dtype, backend):
    """The output and its gradients, by name; and the final state."""
    inputs = case.inputs(dtype)
    out = selective_scan(**inputs, **case.options(), backend=backend)
    cotangent = torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype)
    grads = torch.autograd.grad(out, list(inputs.values()), cotangent)
    with torch.no_grad():
        _, state = selective_scan(**inputs, **case.options(), return_final_state=True, backend=backend)
    return {"output": out, "final state": state} | dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_state_and_gradients_are_as_defined(case, dtype):
    actual, expected = (both(case, dtype, backend) for backend in ("mamba_ssm", "reference"))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # the output was rounded before it was gated
    for name, x in actual.items():
        assert x.dtype == expected[name].dtype
        torch.testing.assert_close(x, expected[name], rtol=tolerance, atol=tolerance, msg=name)


def test_it_stands_behind_triton_and_runs_where_the_call_fits(extension, monkeypatch):
    ran = []
    monkeypatch.setattr(extension, "fwd", lambda *arguments: ran.append("fwd") or fwd(*arguments))
    inputs = ScanCase(initial_state=False).inputs()
    selective_scan(**inputs)
    selective_scan(**inputs, backend="mamba_ssm")
    assert ran == ["fwd"] * 2
    selective_scan(**inputs, return_final_state=True)  # it does not fit, and the next backend takes it
    layer, x = Mamba(4), torch.zeros(1, 2, 4)
    layer(x, return_state=True)
    selective_state_update(torch.zeros(2, 6, 3), *(x[:, 0] if x.ndim > 2 else x for x in list(inputs.values())[:5]))
    assert ran == ["fwd"] * 2
    layer(x).sum().backward()
    assert ran == ["fwd"] * 3


@pytest.mark.parametrize(
    ("case", "change", "reason"),
    [
        (ScanCase(), {}, "mamba_ssm does not know an initial state"),
        (ScanCase(lengths=(2, 3), initial_state=False), {}, "mamba_ssm does not know packed sequences"),
        (ScanCase(reverse=True, initial_state=False), {}, "mamba_ssm does not know the reverse direction"),
        (
            ScanCase(initial_state=False),
            {"return_final_state": True},
            "mamba_ssm does not know a gradient of the final state",
        ),
        (
            ScanCase(initial_state=False),
            {"z": torch.zeros(2, 17, 6, dtype=torch.float16)},
            "mamba_ssm needs one dtype for `u`, `delta`, `B`, `C` and `z`, and no float64",
        ),
        (
            ScanCase(initial_state=False, D=False),
            {"D": torch.zeros(6, dtype=torch.float64)},
            "mamba_ssm needs one dtype for `u`, `delta`, `B`, `C` and `z`, and no float64",
        ),
        (ScanCase(n=257, initial_state=False), {}, "n = 257 is more than mamba_ssm's 256"),
        (ScanCase(l=0, initial_state=False), {}, "mamba_ssm needs tensors of 1 to 2147483647 elements"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_the_reason(case, change, reason):
    with pytest.raises(BackendUnavailable) as raised:
        selective_scan(**{**case.inputs(), **case.options(), **change}, backend="mamba_ssm")
    isa = f"native ({native_library.ISA})"
    text = f"selective_scan: backend 'mamba_ssm' cannot run: {reason}. Can run here: {isa}, chunked, reference."
    assert str(raised.value) == text


def test_it_has_no_convolution():
    with pytest.raises(BackendUnavailable, match="cannot run: mamba_ssm has no convolution"):
        causal_conv1d(**ConvCase().inputs(), backend="mamba_ssm")


def test_a_gradient_that_it_lacks_is_refused_in_the_backward_too():
    u, A, B = torch.zeros(1, 2, 3), torch.zeros(3, 4), torch.zeros(1, 2, 1, 4)
    tensors = (u, u, A, B, B, None, None, None, None, None)
    arguments = (*tensors, torch.zeros(24), u, torch.ones(1, 3, 4), False, False, "mamba_ssm")
    with pytest.raises(BackendUnavailable) as raised:
        operator.backward(*arguments)
    text = "selective_scan: backend 'mamba_ssm' has no gradient of the final state. Call with backend='chunked'."
    assert str(raised.value) == text
