"""`rule`: marks a test as the check of one rule, and makes its errors name the rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mmm_fusion.testing.settings import generators_kept, settings_kept

K = TypeVar("K")


class ContractViolation(AssertionError):
    """A method breaks a rule. The text says what was seen; the notes name the rule and the remedy."""


class Rule(NamedTuple):
    """What a test checks, and what to do where it is broken."""

    says: str
    remedy: str


def rule(says: str, remedy: str) -> Callable[[Callable[[K], None]], Callable[[K], None]]:
    """Mark a test as the check of one rule.

    What the test raises carries the rule and the remedy as notes. What a broken method did to the settings of torch
    and to the global generators ends with the test.

    Args:
        says: The rule.
        remedy: What to do where it is broken.
    """

    def mark(test: Callable[[K], None]) -> Callable[[K], None]:
        @functools.wraps(test)
        def checked(kit: K) -> None:
            with generators_kept(), settings_kept():
                try:
                    test(kit)
                # A method may raise anything, SystemExit too; all but an interrupt is its own doing.
                except BaseException as error:
                    if not isinstance(error, KeyboardInterrupt):
                        error.add_note(f"Rule: {says}")
                        error.add_note(f"To do: {remedy}")
                    raise

        setattr(checked, "rule", Rule(says, remedy))  # noqa: B010  # functions have no such attribute, says mypy
        return checked

    return mark


def require(holds: bool, seen: str) -> None:
    """Raise with what was seen. Not `assert`, which `python -O` leaves out."""
    if not holds:
        raise ContractViolation(f"Seen: {seen}")
