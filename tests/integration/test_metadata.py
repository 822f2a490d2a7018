"""What each distribution says of itself: light dependencies, sibling ranges, a licence, a changelog."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDERS = {path.parent.name: path.parent for path in ROOT.glob("*/*/pyproject.toml")}
PROJECTS = {name: tomllib.loads((path / "pyproject.toml").read_text()) for name, path in FOLDERS.items()}
PACKAGES = {name for name, path in FOLDERS.items() if path.parent.name == "packages"}
HEAVY = {
    "torchvision",
    "torchaudio",
    "transformers",
    "timm",
    "mamba-ssm",
    "causal-conv1d",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "jaxtyping",
}
SIBLINGS = {
    "mmm-core": set(),
    "mmm-vit": set(),
    "mmm-fusion": set(),
    "mmm-block": {"mmm-core", "mmm-vit", "mmm-fusion"},
    "mmm-train": {"mmm-core", "mmm-vit", "mmm-fusion", "mmm-block"},
    "mmm-fusion-film": {"mmm-fusion"},
}


def base_requirements(name: str) -> dict[str, Requirement]:
    requirements = map(Requirement, PROJECTS[name]["project"]["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_five_packages_and_one_example() -> None:
    assert SIBLINGS.keys() - {"mmm-fusion-film"} == PACKAGES
    assert FOLDERS.keys() == SIBLINGS.keys()


@pytest.mark.parametrize("name", SIBLINGS)
def test_base_dependencies_are_light(name: str) -> None:
    assert base_requirements(name).keys() & HEAVY == set()


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_are_required_by_a_range_that_holds_their_version(name: str) -> None:
    siblings = {key: value for key, value in base_requirements(name).items() if key in SIBLINGS}
    assert siblings.keys() <= SIBLINGS[name]
    for sibling, requirement in siblings.items():
        version = Version(PROJECTS[sibling]["project"]["version"])
        floor, ceiling = f">={version.major}.{version.minor}", f"<{version.major}.{version.minor + 1}"
        assert {str(part) for part in requirement.specifier} == {floor, ceiling}


@pytest.mark.parametrize("name", SIBLINGS)
def test_project_table(name: str) -> None:
    project = PROJECTS[name]["project"]
    assert project["name"] == name
    assert project["license"] == "MIT"
    assert project["requires-python"] == ">=3.11"
    assert len(project["description"]) > 20
    torch = base_requirements(name).get("torch")
    assert torch is None or str(torch.specifier) == ">=2.10"


@pytest.mark.parametrize("name", SIBLINGS)
def test_files_that_travel_with_the_package(name: str) -> None:
    folder = FOLDERS[name]
    module = folder / "src" / name.replace("-", "_")
    assert (module / "py.typed").read_bytes() == b""
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_changelog_has_the_version(name: str) -> None:
    headings = re.findall(r"^## (\S+)", (FOLDERS[name] / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == PROJECTS[name]["project"]["version"]


def test_hooks_pin_the_versions_of_the_constraints() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    hooks = re.findall(r"\[([\w-]+)==([^\]]+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert {name: pins[name] for name, _ in hooks} == dict(hooks)


def test_constraints_hold_plain_versions_alone() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if line and not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert lines[0].startswith("torch==")
