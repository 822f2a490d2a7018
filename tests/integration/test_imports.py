"""Who may import whom: the arrows between the packages, read from the source and from a fresh interpreter."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ARROWS = {
    "mmm_core": set(),
    "mmm_vit": set(),
    "mmm_fusion": set(),
    "mmm_block": {"mmm_core", "mmm_vit", "mmm_fusion"},
    "mmm_train": {"mmm_core", "mmm_vit", "mmm_fusion", "mmm_block"},
    "mmm_fusion_film": {"mmm_fusion"},
}
# Imported only by the backend that needs it, and only when that backend is asked for.
OPTIONAL = {"mmm_core": {"triton", "selective_scan_cuda"}}  # the latter is of mamba_ssm
NEVER = {
    "triton",
    "mamba_ssm",
    "selective_scan_cuda",
    "transformers",
    "timm",
    "torchvision",
    "onnx",
    "onnxscript",
    "mmm_fusion_film",
}
SOURCES = {path.name: path for path in ROOT.glob("*/*/src/mmm_*")}


def imported_names(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Every module that the code names in an import of any kind, at any depth."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found += [(node, alias.name) for alias in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                found.append((node, module))
            case ast.Call(func=ast.Attribute(attr=function) | ast.Name(id=function), args=[ast.Constant(value), *_]):
                if function in {"import_module", "__import__"}:
                    found.append((node, value))
    return found


def checking_only(tree: ast.AST) -> set[ast.AST]:
    """The nodes under `if TYPE_CHECKING:`, which never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    return {
        child
        for block in blocks
        if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for child in ast.walk(statement)
    }


def test_every_package_has_its_arrows() -> None:
    assert SOURCES.keys() == ARROWS.keys()


@pytest.mark.parametrize("package", ARROWS)
def test_imports_of_ours_follow_the_arrows(package: str) -> None:
    allowed = ARROWS[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for path in SOURCES[package].rglob("*.py")
        for node, name in imported_names(ast.parse(path.read_text()))
        if (top := name.partition(".")[0]).startswith("mmm_") and top not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ARROWS)
def test_imports_of_others_are_declared(package: str) -> None:
    project = tomllib.loads((SOURCES[package].parents[1] / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    declared = {canonicalize_name(Requirement(line).name) for group in groups for line in group}
    declared |= {*sys.stdlib_module_names, *OPTIONAL.get(package, ())}
    distributions = packages_distributions()
    wrong = []
    for path in SOURCES[package].rglob("*.py"):
        tree = ast.parse(path.read_text())
        never_run = checking_only(tree)
        for node, name in imported_names(tree):
            top = name.partition(".")[0]
            known = top in sys.stdlib_module_names or top.startswith("mmm_") or top in OPTIONAL.get(package, ())
            owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
            if node not in never_run and not known and not owners & declared:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", ARROWS)
def test_import_is_silent_and_light(package: str, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, torch; before = set(sys.modules); "
        f"import {package}; pathlib.Path('modules').write_text(' '.join(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    tops = {name.partition(".")[0] for name in (tmp_path / "modules").read_text().split()}
    assert tops & (NEVER - {package}) == set()
    assert {top for top in tops if top.startswith("mmm_")} <= ARROWS[package] | {package}


def test_the_walk_sees_hidden_imports() -> None:
    code = """def f():
        from mmm_train import x
        import_module("mmm_core")
        importlib.import_module("mmm_vit")
    """
    assert [name for _, name in imported_names(ast.parse(code))] == ["mmm_train", "mmm_core", "mmm_vit"]
