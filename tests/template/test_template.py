"""The copier template: what it asks, what it refuses, and the package that it makes.

`nox -s wheels` installs such a package beside the wheels, and uses it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml
from copier import run_copy

import mmm_fusion

TEMPLATE = Path(__file__).parents[2] / "template"
MARKS = re.compile(r"\{\{|\}\}|\{%|%\}|\{#")


def make(folder: Path, **answers: str) -> Path:
    """The package that the template makes; questions without an answer take their default."""
    run_copy(str(TEMPLATE), folder, data={"author": "Zoë O'Brien & Sons", **answers}, defaults=True, quiet=True)
    return folder


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("glance"), method="glance")


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_few_questions() -> None:
    questions = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    asked = [name for name, it in questions.items() if not name.startswith("_") and it.get("when", True)]
    assert asked == ["method", "distribution", "author", "description"]


def test_the_files_of_a_package(glance: Path) -> None:
    assert sorted(files(glance)) == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/mmm_fusion_glance/__init__.py",
        "src/mmm_fusion_glance/glance.py",
        "src/mmm_fusion_glance/py.typed",
        "tests/test_glance.py",
    ]


def test_nothing_of_the_template_is_left(glance: Path) -> None:
    # A workflow has braces of its own: ${{ … }}.
    left = {path: MARKS.findall(re.sub(r"\$\{\{.*?\}\}", "", text)) for path, text in files(glance).items()}
    assert {path: marks for path, marks in left.items() if marks} == {}


def test_the_answers_are_where_they_belong(tmp_path: Path) -> None:
    folder = make(tmp_path, method="far_look", distribution="acme-look", description="Looks far, <&> 'wide'.")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "acme-look"
    assert project["description"] == "Looks far, <&> 'wide'."
    assert project["authors"] == [{"name": "Zoë O'Brien & Sons"}]
    assert project["entry-points"] == {"mmm_fusion": {"far_look": "acme_look.far_look"}}
    source = (folder / "src/acme_look/far_look.py").read_text()
    assert '\nclass FarLook(ImageFirst):\n    """Looks far, <&> \'wide\'.\n' in source
    assert f"Copyright (c) {date.today().year} Zoë O'Brien & Sons\n" in (folder / "LICENSE").read_text()
    assert (folder / "README.md").read_text().startswith("# acme-look\n")


def test_the_package_asks_for_this_mmm_fusion(glance: Path) -> None:
    film = TEMPLATE.parent / "examples/mmm-fusion-film"
    made, example = (tomllib.loads((path / "pyproject.toml").read_text())["project"] for path in (glance, film))
    for key in ("dependencies", "requires-python", "license"):
        assert made[key] == example[key]


def test_it_passes_its_contract_test(glance: Path) -> None:
    path = os.pathsep.join([str(glance / "src"), os.environ.get("PYTHONPATH", "")])
    # Not installed, it has no name yet.
    options = ["-q", "-p", "no:cacheprovider", "--deselect=tests/test_glance.py::test_it_is_found_by_name"]
    command = [sys.executable, "-m", "pytest", *options]
    run = subprocess.run(command, cwd=glance, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "1 deselected" in run.stdout


@pytest.mark.parametrize("method", ["x", "n_" + "abcd" * 7])
def test_its_style_is_ruffs_for_short_names_and_long_ones(tmp_path: Path, method: str) -> None:
    make(tmp_path, method=method, description="d" * 100)
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(["ruff", *command, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, ""), run.stdout  # ruff warns where it finds no files


EXAMPLE = "For example: mmm-fusion-glance"
FORM = "Lower case letters, digits and _, beginning with a letter, at most 30. For example: glance"
THERE_IS = "There is a method '{}' already. Take another name."
RESERVED = "'{}' already means something in Python or in the file to be written. Take another name."
WORDS = "Words of lower case letters and digits, joined by -, beginning with a letter, at most 41. " + EXAMPLE
LINE = 'One line, without " and \\'
SHORT_LINE = 'One line of at most 100 characters, without " and \\'
REFUSED = [
    ("method", FORM, ["My-Method", "", "2d", "_look", "look ", "look\n", "gläns", "a" * 31]),
    ("method", RESERVED, ["class", "none", "tensor"]),
    ("method", THERE_IS, [method.name for method in mmm_fusion.available()]),
    ("distribution", WORDS, ["My-Fusion", "my_fusion", "-fusion", "fusion-", "a--b", "3d-fusion", "a" * 42]),
    ("distribution", "'{}' is taken. " + EXAMPLE, ["mmm-fusion", "import"]),
    ("author", LINE, ["", " ", 'A "quoted" one', "two\nlines", "back\\slash"]),
    ("description", SHORT_LINE, ["", "d" * 101, 'says "hi"', "two\nlines", "ends with \\"]),
]


@pytest.mark.parametrize(
    ("question", "text", "answer"), [(name, text, answer) for name, text, answers in REFUSED for answer in answers]
)
def test_a_bad_answer_is_refused(tmp_path: Path, question: str, text: str, answer: str) -> None:
    with pytest.raises(ValueError, match="Validation error") as caught:
        make(tmp_path / "package", **{"method": "glance", question: answer})
    assert str(caught.value) == f"Validation error for question '{question}': {text.format(answer)}"
    assert not (tmp_path / "package").exists()
