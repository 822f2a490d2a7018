"""Which backend runs a call, and what is said of the others."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import mmm_core
from mmm_core import BackendUnavailable, backends, causal_conv1d, native_library, selective_scan
from mmm_core.testing import ConvCase, ScanCase

ORDER = ["triton", "mamba_ssm", "native", "chunked", "reference"]


def native_name() -> str:
    """What the errors call the native backend here."""
    return f"native ({native_library.ISA})"


def test_explain_gives_a_verdict_on_every_backend_in_order():
    explanation = mmm_core.explain(torch.zeros(1))
    assert [verdict.backend for verdict in explanation] == ORDER
    assert explanation.chosen == "native"
    reasons = dict(explanation)
    assert reasons["triton"] == reasons["mamba_ssm"] == "`u` is on cpu"
    assert reasons["native"] is reasons["chunked"] is reasons["reference"] is None


def test_explain_prints_a_table():
    lines = str(mmm_core.explain()).splitlines()
    assert lines == [
        "triton     cannot run: `u` is on cpu",
        "mamba_ssm  cannot run: `u` is on cpu",
        f"native     chosen ({native_library.ISA}, torch's threads)",
        "chunked    can run",
        "reference  can run",
    ]


ON_GPU = SimpleNamespace(device=torch.device("cuda"))


def test_explain_speaks_of_the_tensors_device(monkeypatch):
    monkeypatch.setattr(backends, "_MISSING", frozenset())
    explanation = mmm_core.explain(ON_GPU)
    assert explanation.chosen == "triton"
    assert [verdict.backend for verdict in explanation if verdict.reason is not None] == ["native"]
    assert dict(explanation)["native"] == "`u` is on cuda"


def test_explain_says_what_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr(backends, "_MISSING", frozenset({"triton", "mamba_ssm"}))
    explanation = mmm_core.explain(ON_GPU)
    assert explanation.chosen == "chunked"
    reasons = dict(explanation)
    assert reasons["triton"] == "the module triton is not installed"
    assert reasons["mamba_ssm"] == "the module selective_scan_cuda is not installed"


def test_the_interpreter_of_kernels_runs_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(backends, "INTERPRETED", True)
    monkeypatch.setattr(backends, "_MISSING", frozenset())
    for u in (None, ON_GPU):
        explanation = mmm_core.explain(u)
        assert [verdict.backend for verdict in explanation] == [*ORDER[1:], "triton"]
        assert dict(explanation)["triton"] is None
        assert explanation.chosen != "triton"


@pytest.mark.parametrize("module", ["triton", "selective_scan_cuda"])
def test_what_only_a_gpu_needs_is_imported_when_it_runs(module):
    program = f"""
import sys, torch, mmm_core.layers, mmm_core.compat.mamba_ssm
mmm_core.layers.Mamba(4)(torch.zeros(1, 2, 4)).sum().backward()
mmm_core.explain()
sys.exit({module!r} in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_explain_knows_what_the_environment_forces(monkeypatch):
    monkeypatch.setenv("MMM_CORE_BACKEND", "reference")
    explanation = mmm_core.explain()
    assert explanation.chosen == "reference"
    lines = str(explanation).splitlines()
    assert lines[2] == f"native     can run ({native_library.ISA}, torch's threads)"
    assert lines[3:] == ["chunked    can run", "reference  can run, asked for by MMM_CORE_BACKEND"]
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    line = str(mmm_core.explain()).splitlines()[0]
    assert line == "triton     cannot run: `u` is on cpu, asked for by MMM_CORE_BACKEND"


def test_the_command_prints_the_report():
    run = subprocess.run([sys.executable, "-m", "mmm_core"], capture_output=True, text=True, check=True)
    assert "on cpu:\ntriton     cannot run" in run.stdout
    assert run.stdout.startswith("mmm-core 0.1.0, torch ")
    assert f"native     chosen ({native_library.ISA}, torch's threads)" in run.stdout


@pytest.mark.parametrize("operation", ["scan", "conv"])
def test_a_forced_backend_that_cannot_run_raises(operation, monkeypatch):
    run, where, tensor = {
        "scan": (lambda **kw: selective_scan(**ScanCase().inputs(), **kw), "selective_scan", "u"),
        "conv": (lambda **kw: causal_conv1d(**ConvCase().inputs(), **kw), "causal_conv1d", "x"),
    }[operation]
    here = f"{native_name()}, chunked, reference"
    text = f"{where}: backend 'triton' cannot run: `{tensor}` is on cpu. Can run here: {here}."
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


@pytest.mark.parametrize(
    ("name", "value", "begins", "ends"),
    [
        ("NAME", "libabsent.so", "libabsent.so was not built; ", "where GCC 12 or newer, or Clang, is at hand"),
        ("NAME", "py.typed", "py.typed does not load (", "; reinstall mmm-core on this machine"),
        ("ABI", 99, native_library.NAME, f" has ABI {native_library.ABI}, this mmm_core needs 99; reinstall mmm-core"),
    ],
)
def test_a_library_that_cannot_be_used_is_said(monkeypatch, name, value, begins, ends):
    monkeypatch.setattr(native_library, name, value)
    reason = native_library._load()
    assert reason.startswith(begins)
    assert reason.endswith(ends)


def test_importing_does_not_load_the_compiler():
    program = "import sys, mmm_core; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
