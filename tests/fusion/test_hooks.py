"""Every hook is documented, and has a test; every rule of the contract is documented."""

import inspect
import re
from pathlib import Path

import pytest

from mmm_fusion import hookspecs
from mmm_fusion.testing import FusionContract, rules_of

HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "mmm_fusion_spec")]


def test_there_are_hooks() -> None:
    assert HOOKS == ["mmm_fusion_methods"]


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented(hook: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "Returns:" in text
    root = Path(__file__).parents[2]
    signature = f"{hook}{inspect.signature(getattr(hookspecs, hook))}".replace("'", "")
    assert f"`{signature}`" in (root / "docs/how-to/fusion-plugin.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_test(hook: str) -> None:
    assert f"def {hook}()" in Path(__file__).with_name("test_plugins.py").read_text()


def test_the_rules_of_the_contract_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/concepts/fusion.md").read_text()
    assert re.findall(r"^\| `(test_\w+)` \|", page, flags=re.MULTILINE) == list(rules_of(FusionContract))
