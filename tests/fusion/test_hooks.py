"""Every hook is documented, stands in the reference, and has a test; every rule of the contract is documented."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmm_fusion import available, failures, hookspecs
from mmm_fusion.testing import FusionContract, rules_of

ROOT = Path(__file__).parents[2]
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "mmm_fusion_spec")]


def test_mmm_fusion_methods(site) -> None:
    """Called once, without arguments, when the registry is first used; all its classes are available."""
    source = """
from mmm_fusion import hookimpl
from mmm_fusion.methods import Add

calls = []

@hookimpl
def mmm_fusion_methods():
    calls.append(1)
    for name in ("late", "early"):
        yield type(name, (Add,), {"name": name})
"""
    site.install("acme-fusion", "0.2", source)
    for _ in range(2):
        assert [method.name for method in available()][-2:] == ["early", "late"]
    assert failures() == ()
    import acme_fusion

    assert acme_fusion.calls == [1]


def undocumented(hook: Callable[..., object]) -> list[str]:
    """What the docstring and the annotations of a hook leave out."""
    text, signature = inspect.getdoc(hook) or "", inspect.signature(hook)
    named = [name for name in signature.parameters if not re.search(rf"^    {name}: \S", text, re.MULTILINE)]
    bare = [name for name, it in signature.parameters.items() if it.annotation is it.empty]
    returns = [] if re.search(r"^Returns:\n    \S", text, re.MULTILINE) else ["Returns:"]
    gives = ["->"] if signature.return_annotation is signature.empty else []
    return named + bare + returns + gives


def in_reference(hook: str, page: str) -> bool:
    """Its signature and docstring are put there when the documentation is built."""
    return f"\n::: mmm_fusion.hookspecs.{hook}\n    options:\n      show_signature_annotations: true\n" in page


def test_there_are_hooks() -> None:
    assert "mmm_fusion_methods" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented(hook: str) -> None:
    assert undocumented(getattr(hookspecs, hook)) == []


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_stands_in_the_reference(hook: str) -> None:
    assert in_reference(hook, (ROOT / "docs/reference/hooks.md").read_text())


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_test(hook: str) -> None:
    assert callable(globals().get(f"test_{hook}"))


def test_what_a_hook_lacks_is_seen() -> None:
    def hook(config, fast: bool):
        """Do something.

        Args:
            config: What to do.
        """

    assert undocumented(hook) == ["fast", "config", "Returns:", "->"]
    assert not in_reference("hook", "# Hooks\n\n::: mmm_fusion.hookspecs.another_hook\n")


def test_the_rules_of_the_contract_are_documented() -> None:
    page = (ROOT / "docs/concepts/fusion.md").read_text()
    assert re.findall(r"^\| `(test_\w+)` \|", page, flags=re.MULTILINE) == list(rules_of(FusionContract))
