"""`import mmm_fusion` imports little: no plug-in, no method, no tool."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

NOT_NEEDED = [
    *("mmm_fusion.builtin", "mmm_fusion.methods", "mmm_fusion.testing", "mmm_fusion.check", "mmm_fusion.listing"),
    *("argparse", "json", "numpy", "jaxtyping", "pytest", "unittest", "torch._dynamo", "torch._inductor"),
]


def new_modules(code: str) -> set[str]:
    """What the code imports in a new interpreter that has torch."""
    program = f"import sys, torch; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules of the plug-ins that are installed; the example is one."""
    for variable in ("MMM_FUSION_PLUGINS", "MMM_FUSION_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    modules = {each.module for each in entry_points(group="mmm_fusion")}
    assert "mmm_fusion_film" in {module.partition(".")[0] for module in modules}
    return modules


def test_an_import_of_the_package_imports_little(plugins: set[str]) -> None:
    imported = new_modules("import mmm_fusion")
    assert "mmm_fusion.interface" in imported
    assert imported & {*NOT_NEEDED, *plugins} == set()


@pytest.mark.parametrize("code", ["mmm_fusion.FusionMethod", "mmm_fusion.load_file", "mmm_fusion.hookimpl"])
def test_to_write_a_method_imports_no_plugin(plugins: set[str], code: str) -> None:
    assert new_modules(f"import mmm_fusion; {code}") & plugins == set()


def test_the_first_use_imports_the_plugins(plugins: set[str]) -> None:
    imported = new_modules("import mmm_fusion; mmm_fusion.available()")
    assert {"mmm_fusion.methods", *(each for each in plugins if each.startswith("mmm_fusion_film"))} <= imported
