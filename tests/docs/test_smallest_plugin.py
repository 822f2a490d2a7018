"""The smallest file of the tutorial on fusion plug-ins keeps the whole contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmm_fusion.testing import FusionContract

PAGE = (Path(__file__).parents[2] / "docs/tutorials/fusion-plugin.md").read_text()
(SOURCE,) = re.findall(r"^```python\n(# my_fusion\.py\n.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
FILE: dict[str, Any] = {"__name__": "my_fusion"}
exec(SOURCE, FILE)


class TestGlance(FusionContract):
    method = FILE["Glance"]


def test_it_is_small() -> None:
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 20
