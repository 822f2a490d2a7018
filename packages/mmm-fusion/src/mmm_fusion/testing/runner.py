"""Runs the rules of a kit one after another, without a test runner, and says what each found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.rule import Rule


class Finding(NamedTuple):
    """What came of one rule.

    Attributes:
        name: The rule's test, without `test_`.
        rule: What it says, and what to do where it is broken.
        error: What the test raised; None: the method keeps the rule.
    """

    name: str
    rule: Rule
    error: BaseException | None


def rules_of(kit: type[Kit]) -> dict[str, Rule]:
    """The rules of a kit.

    Args:
        kit: `FusionContract`, or a subclass.
    Returns:
        The rules by the names of their tests, in the order of the documentation.
    """
    tests = [(name, test) for owner in kit.__mro__ for name, test in vars(owner).items()]
    return {name: test.rule for name, test in tests if name.startswith("test_") and hasattr(test, "rule")}


def findings(kit: type[Kit]) -> Iterator[Finding]:
    """Put a method to every rule.

    Args:
        kit: A subclass of `FusionContract` that names the method.
    Yields:
        What came of each rule, as soon as it is known.
    """
    for name, rule in rules_of(kit).items():
        error: BaseException | None = None
        try:
            getattr(kit(), name)()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit too: a method must not end the report of itself
            error = raised
        yield Finding(name.removeprefix("test_"), rule, error)
