"""The fusion methods that are loaded, and the plug-ins that failed: as text, and as JSON."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from typing import Any

from mmm_fusion.discovery import Source
from mmm_fusion.errors import PluginError
from mmm_fusion.interface import CONTRACT, FusionMethod
from mmm_fusion.loading import Failure, Registered, Registry, text_of
from mmm_fusion.options import defaults_of
from mmm_fusion.plugins import registry


def print_listing(*, as_json: bool = False) -> int:
    """Print what is loaded, and what failed.

    Args:
        as_json: One JSON object in place of text.
    Returns:
        The exit code: 1 if a plug-in failed.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints when it is imported
            known = registry()
    except PluginError as error:  # strict mode
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(described(known), indent=2) if as_json else as_text(known))
    return 1 if known.failures else 0


def described(known: Registry) -> dict[str, Any]:
    """The registry in values that JSON has."""
    return {
        "contract": CONTRACT,
        "methods": [
            {
                "name": name,
                "summary": summary(entry.method),
                "class": f"{entry.method.__module__}.{entry.method.__qualname__}",
                "options": {option: in_json(default) for option, default in defaults_of(entry.method).items()},
                **origin(entry.source),
            }
            for name, entry in known.methods.items()
        ],
        "failures": [
            {"error": type(failure.error).__name__, "message": text_of(failure.error), **origin(failure.source)}
            for failure in known.failures
        ],
    }


def origin(source: Source) -> dict[str, str | None]:
    """A source, with null for what it does not have."""
    fields = ("distribution", "version", "entry_point", "place")
    return {field: getattr(source, field) or None for field in fields}


def as_text(known: Registry) -> str:
    """The registry in lines for a terminal."""
    lines = [f"Fusion methods (contract {CONTRACT})"]
    lines += [_method(name, entry) for name, entry in known.methods.items()]
    if known.failures:
        lines += ["", "Failed to load", *map(_failure, known.failures)]
    return "\n".join(lines)


def summary(method: type[FusionMethod]) -> str:
    """The first line of a method's own docstring; not that of a class it derives from."""
    text = vars(method).get("__doc__")
    return inspect.cleandoc(text).partition("\n")[0] if isinstance(text, str) else ""


def in_json(default: object) -> object:
    """A stranger's default as it is, where JSON has such a value, or else as text."""
    for form in (lambda: default, lambda: repr(default)):
        with contextlib.suppress(Exception):
            return json.loads(json.dumps(form(), allow_nan=False))
    return f"<{type(default).__name__}>"


def _method(name: str, entry: Registered) -> str:
    method = entry.method
    module = "" if entry.source.place else f"{method.__module__}."
    return f"  {name:<16} {entry.source}, {module}{method.__qualname__}\n      {summary(method)}".rstrip()


def _failure(failure: Failure) -> str:
    entry_point = f", entry point '{failure.source.entry_point}'" if failure.source.entry_point else ""
    return f"  {failure.source}{entry_point}\n      {type(failure.error).__name__}: {text_of(failure.error)}"
