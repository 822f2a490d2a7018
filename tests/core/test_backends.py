"""Which backend runs a call, what is said of the others, and the native library's own part."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import mmm_core
from mmm_core import BackendUnavailable, causal_conv1d, native_library, selective_scan
from mmm_core.testing import ConvCase, ScanCase

ORDER = ["triton", "mamba_ssm", "native", "chunked", "reference"]


def test_explain_gives_a_verdict_on_every_backend_in_order():
    explanation = mmm_core.explain(torch.zeros(1))
    assert [verdict.backend for verdict in explanation] == ORDER
    assert explanation.chosen == "chunked"
    reasons = dict(explanation)
    assert reasons["triton"] == reasons["mamba_ssm"] == "`u` is on cpu"
    assert reasons["native"].startswith("the library is built (ABI 1, this CPU has ")
    assert reasons["native"].endswith("but this version holds no kernels in it yet")
    assert reasons["chunked"] is reasons["reference"] is None


def test_explain_prints_a_table():
    lines = str(mmm_core.explain()).splitlines()
    assert lines[0] == "triton     cannot run: `u` is on cpu"
    assert lines[3:] == ["chunked    chosen", "reference  can run"]


def test_explain_speaks_of_the_tensors_device():
    reasons = dict(mmm_core.explain(SimpleNamespace(device=torch.device("cuda"))))
    assert reasons["triton"] == reasons["mamba_ssm"] == "this version of mmm-core has no GPU kernels"


def test_the_command_prints_the_report():
    run = subprocess.run([sys.executable, "-m", "mmm_core"], capture_output=True, text=True, check=True)
    assert "on cpu:\ntriton     cannot run" in run.stdout
    assert run.stdout.startswith("mmm-core 0.1.0, torch ")
    assert "chunked    chosen" in run.stdout


@pytest.mark.parametrize("operation", ["scan", "conv"])
def test_a_forced_backend_that_cannot_run_raises(operation, monkeypatch):
    run, where, tensor = {
        "scan": (lambda **kw: selective_scan(**ScanCase().inputs(), **kw), "selective_scan", "u"),
        "conv": (lambda **kw: causal_conv1d(**ConvCase().inputs(), **kw), "causal_conv1d", "x"),
    }[operation]
    text = f"{where}: backend 'triton' cannot run: `{tensor}` is on cpu. Can run here: chunked, reference."
    with pytest.raises(BackendUnavailable) as raised:
        run(backend="triton")
    assert str(raised.value) == text
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    with pytest.raises(BackendUnavailable) as raised:
        run()
    assert str(raised.value) == text
    run(backend="reference")  # an argument goes before the environment


def test_an_unknown_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of") as raised:
        selective_scan(**ScanCase().inputs(), backend="cuda")
    assert str(raised.value) == f"selective_scan: backend must be one of {', '.join(ORDER)}, got 'cuda'."
    monkeypatch.setenv("MMM_CORE_BACKEND", "fast")
    with pytest.raises(ValueError, match="MMM_CORE_BACKEND must be one of"):
        selective_scan(**ScanCase().inputs())


@pytest.fixture
def fresh_library():
    for function in (native_library.load, native_library.why_not):
        function.cache_clear()
    yield
    for function in (native_library.load, native_library.why_not):
        function.cache_clear()


def test_the_wheel_carries_the_library():
    assert native_library.isa() in ("avx512", "avx2", "neon", "baseline")


@pytest.mark.usefixtures("fresh_library")
def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(native_library, "NAME", "libabsent.so")
    reason = "libabsent.so was not built; reinstall mmm-core where a C++17 compiler is at hand"
    assert dict(mmm_core.explain())["native"] == reason
    assert native_library.isa() is None


@pytest.mark.usefixtures("fresh_library")
def test_a_library_of_another_abi_is_refused(monkeypatch):
    monkeypatch.setattr(native_library, "ABI", 99)
    assert dict(mmm_core.explain())["native"].endswith("has ABI 1, this mmm_core needs 99; reinstall mmm-core")


@pytest.mark.usefixtures("fresh_library")
def test_a_library_that_does_not_load_is_said(monkeypatch):
    monkeypatch.setattr(native_library, "NAME", "py.typed")
    reason = dict(mmm_core.explain())["native"]
    assert reason.startswith("py.typed does not load (")
    assert reason.endswith("; reinstall mmm-core on this machine")
