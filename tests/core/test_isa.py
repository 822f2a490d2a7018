"""The instruction set in use: the widest that the CPU has, or the one that `MMM_CORE_ISA` forces, or an error.

`nox -s isa` repeats the tests of the kernels with each of them forced.
"""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import mmm_core
from mmm_core import (
    BackendUnavailable,
    causal_conv1d,
    causal_conv1d_update,
    native_library,
    selective_scan,
    selective_state_update,
)
from mmm_core.testing import ConvCase, ScanCase

HAS = ", ".join(native_library.AVAILABLE)
TOKEN, STATE, SQUARE = torch.zeros(2, 6), torch.zeros(2, 6, 3), torch.zeros(6, 3)
CALLS = {
    "selective_scan": lambda **options: selective_scan(**ScanCase().inputs(), **options),
    "causal_conv1d": lambda **options: causal_conv1d(**ConvCase().inputs(), **options),
    "selective_state_update": lambda: selective_state_update(
        STATE.clone(), TOKEN, TOKEN, SQUARE, TOKEN[:, :3], TOKEN[:, :3]
    ),
    "causal_conv1d_update": lambda: causal_conv1d_update(TOKEN, STATE.clone(), torch.zeros(6, 4)),
}
pytestmark = pytest.mark.usefixtures("instruction_set")


def in_use() -> str:
    """As the library itself has it."""
    return native_library.LIBRARY.mmm_core_isa().decode()


def big_scan():
    """Enough work to be handed to a pool."""
    return selective_scan(**ScanCase(b=4, l=64, e=256, n=16).inputs(), return_final_state=True)


def test_the_environment_decides_or_the_widest_is_in_use():
    expected = os.environ.get("MMM_CORE_ISA") or native_library.AVAILABLE[0]
    assert native_library.ISA == in_use() == expected
    assert f"native     chosen ({expected}, torch's threads)" in str(mmm_core.explain()).splitlines()


@pytest.mark.parametrize("isa", native_library.AVAILABLE)
def test_a_forced_instruction_set_is_the_one_that_runs(isa, pool, monkeypatch):
    monkeypatch.setenv("MMM_CORE_ISA", isa)
    big_scan()
    assert pool.calls
    assert in_use() == isa
    assert f"native     chosen ({isa}, torch's threads)" in str(mmm_core.explain())


def test_unsetting_it_goes_back_to_the_widest(monkeypatch):
    monkeypatch.setenv("MMM_CORE_ISA", native_library.AVAILABLE[-1])
    CALLS["selective_scan"]()
    monkeypatch.delenv("MMM_CORE_ISA")
    CALLS["selective_scan"]()
    assert in_use() == native_library.AVAILABLE[0]


@pytest.mark.parametrize("where", CALLS)
def test_one_that_this_cpu_lacks_raises(where, monkeypatch):
    monkeypatch.setenv("MMM_CORE_ISA", "sse9")
    with pytest.raises(BackendUnavailable) as raised:
        CALLS[where]()
    assert str(raised.value) == (
        f"{where}: MMM_CORE_ISA is 'sse9', and this CPU has {HAS}. Unset it, or set it to one of these."
    )


@pytest.mark.parametrize("where", ["selective_scan", "causal_conv1d"])
def test_one_that_this_cpu_lacks_stops_the_native_backend_and_no_other(where, monkeypatch):
    monkeypatch.setenv("MMM_CORE_ISA", "sse9")
    with pytest.raises(BackendUnavailable) as raised:
        CALLS[where](backend="native")
    assert str(raised.value) == (
        f"{where}: backend 'native' cannot run: MMM_CORE_ISA is 'sse9', and this CPU has {HAS}. "
        "Can run here: chunked, reference."
    )
    CALLS[where](backend="chunked")
    explanation = mmm_core.explain()
    assert explanation.chosen == "native"
    assert str(explanation).splitlines()[2:] == [
        f"native     cannot run: MMM_CORE_ISA is 'sse9', and this CPU has {HAS}, asked for by MMM_CORE_ISA",
        "chunked    can run",
        "reference  can run",
    ]


def test_one_forced_without_a_library_raises(monkeypatch):
    missing = "the library was not built; reinstall it"
    for name, value in {"LIBRARY": None, "MISSING": missing, "WHY_NOT": missing, "AVAILABLE": ()}.items():
        monkeypatch.setattr(native_library, name, value)
    monkeypatch.setenv("MMM_CORE_ISA", "avx2")
    with pytest.raises(BackendUnavailable) as raised:
        CALLS["selective_scan"]()
    assert str(raised.value) == f"selective_scan: MMM_CORE_ISA is 'avx2', and {missing}. Or unset it."
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("forced", "line"),
    [
        (native_library.AVAILABLE[-1], f"chosen ({native_library.AVAILABLE[-1]}, torch's threads)"),
        ("sse9", f"cannot run: MMM_CORE_ISA is 'sse9', and this CPU has {HAS}, asked for by MMM_CORE_ISA"),
    ],
)
def test_the_command_shows_what_the_environment_forces(forced, line):
    environment = os.environ | {"MMM_CORE_ISA": forced}
    run = subprocess.run(
        [sys.executable, "-m", "mmm_core"], env=environment, capture_output=True, text=True, check=True
    )
    assert f"\nnative     {line}\n" in run.stdout


def test_what_is_compiled_follows_the_environment(monkeypatch):
    inputs = {name: x.detach() for name, x in ScanCase().inputs().items()}
    compiled = torch.compile(partial(selective_scan, delta_softplus=True), fullgraph=True, backend="aot_eager")
    for isa in native_library.AVAILABLE:
        monkeypatch.setenv("MMM_CORE_ISA", isa)
        compiled(**inputs)
        assert isa == native_library.ISA
    monkeypatch.setenv("MMM_CORE_ISA", "sse9")
    with pytest.raises(BackendUnavailable, match="mmm_core: MMM_CORE_ISA is 'sse9', and this CPU has"):
        compiled(**inputs)
    monkeypatch.delenv("MMM_CORE_ISA")
    compiled(**inputs)
