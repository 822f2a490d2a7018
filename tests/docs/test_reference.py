"""Whatever `mmm_fusion` offers stands in its reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mmm_fusion
from mmm_fusion import errors, methods

REFERENCE = Path(__file__).parents[2] / "docs/reference"
SHOWN = re.findall(r"^::: (\S+)$", "".join(page.read_text() for page in sorted(REFERENCE.glob("*.md"))), re.MULTILINE)
NAMES = [name for name in mmm_fusion.__all__ if name != "hookimpl"]  # a marker: the page on hooks tells of it


@pytest.mark.parametrize("name", [*NAMES, *(f"methods.{name}" for name in methods.__all__)])
def test_every_public_name_of_mmm_fusion(name: str) -> None:
    if hasattr(errors, name):  # the page shows that module as a whole
        assert "mmm_fusion.errors" in SHOWN
    else:
        assert SHOWN.count(f"mmm_fusion.{name}") == 1
