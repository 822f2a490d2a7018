"""The directory of plug-ins: each row is whole, and those of this repository say what the packages say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mmm_fusion import available

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/plugins.md").read_text()
COLUMNS = ["method", "distribution", "what it does", "paper", "contract"]
LINES = re.findall(r"^\|(.*)\|$", PAGE, flags=re.MULTILINE)
HEADER, _, *ROWS = [[cell.strip() for cell in line.split("|")] for line in LINES]
HERE = {row[1].split("`")[1]: row for row in ROWS if "(`examples/" in row[1]}  # by distribution
EXAMPLES = {path.parent.name: path.parent for path in ROOT.glob("examples/*/pyproject.toml")}


def test_the_table_has_these_columns_in_the_order_of_the_methods() -> None:
    assert HEADER == COLUMNS
    assert [row[0] for row in ROWS] == sorted({row[0] for row in ROWS})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_whole(row: list[str]) -> None:
    method, distribution, what, paper, contract = row
    assert re.fullmatch(r"`[a-z][a-z0-9_]*`", method)
    assert re.match(r"`[a-z][a-z0-9-]*`|\[[a-z][a-z0-9-]*\]\(https://", distribution)
    assert len(what) > 10
    assert paper == "none" or re.fullmatch(r"\[[^\]]+ (19|20)\d\d\]\(https://\S+\)", paper)
    assert re.fullmatch(r"[1-9]\d*", contract)


def test_every_plugin_of_this_repository_is_listed() -> None:
    assert HERE.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("distribution", EXAMPLES)
def test_a_row_of_this_repository_agrees_with_its_package(distribution: str) -> None:
    folder, row = EXAMPLES[distribution], HERE[distribution]
    assert f"(`{folder.relative_to(ROOT)}`)" in row[1]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == distribution
    (method,) = [each for each in available() if each.__module__.startswith(f"{distribution.replace('-', '_')}.")]
    assert row[0] == f"`{method.name}`"
    assert row[4] == str(method.contract)


def test_no_method_that_comes_with_the_packages_is_listed() -> None:
    own = ("mmm_fusion.", "mmm_block.")
    built_in = {f"`{method.name}`" for method in available() if method.__module__.startswith(own)}
    assert built_in
    assert built_in & {row[0] for row in ROWS} == set()
