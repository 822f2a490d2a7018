"""A method's own options: which there are, and of which type, read from the signature of its constructor."""

from __future__ import annotations

import inspect
import math
from typing import Any

from mmm_fusion.errors import ArgumentError, nearest
from mmm_fusion.interface import FusionMethod
from mmm_fusion.rules import SHARED

KINDS = {bool: "True or False", int: "an int", float: "a number", str: "a string"}
"""What an option must be, by the type of its default. Defaults of other types, None too, bind to nothing."""


def defaults_of(method: type[FusionMethod]) -> dict[str, Any]:
    """The options of a method that have names of their own, with their defaults."""
    parameters = inspect.signature(method).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return {each.name: each.default for each in named if each.name not in SHARED}


def check_options(method: type[FusionMethod], options: dict[str, Any]) -> None:
    """Refuse options that a method does not have, and values of the wrong type.

    Args:
        method: The class that is to be made.
        options: Its own options.
    Raises:
        ArgumentError: Names the option, and the nearest that there is or the type of the default.
    """
    where, defaults = f"fusion method '{method.name}'", defaults_of(method)
    parameters = inspect.signature(method).parameters.values()
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for option, value in options.items():
        if option in defaults:
            _check_type(f"{where}: option '{option}'", value, defaults[option])
        elif not takes_any:
            has = f"Its options: {', '.join(sorted(defaults))}." if defaults else "It has no options of its own."
            raise ArgumentError(f"{where} has no option '{option}'.{nearest(option, defaults)} {has}")


def _check_type(where: str, value: object, default: object) -> None:
    """An int may stand for a float, and no bool for a number."""
    kind = type(default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if kind is float else isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    finite = not isinstance(value, float) or math.isfinite(value)
    if kind in KINDS and not (fits and finite):
        expected = "a finite number" if fits else KINDS[kind]
        raise ArgumentError(f"{where} must be {expected}, as its default {default!r}, got {value!r}.")
