"""`python -m mmm_fusion`: the fusion methods that are loaded, and the plug-ins that failed. Exits 1 if any failed."""

from __future__ import annotations

import inspect
import sys

from mmm_fusion.errors import PluginError
from mmm_fusion.interface import CONTRACT
from mmm_fusion.plugins import Failure, Registered, registry


def main() -> int:
    """Print the listing.

    Returns:
        The exit code.
    """
    try:
        known = registry()
    except PluginError as error:  # strict mode
        print(error, file=sys.stderr)
        return 1
    print(f"Fusion methods (contract {CONTRACT})")
    for name, entry in known.methods.items():
        print(_method(name, entry))
    if known.failures:
        print("\nFailed to load")
    for failure in known.failures:
        print(_failure(failure))
    return 1 if known.failures else 0


def _method(name: str, entry: Registered) -> str:
    method = entry.method
    summary = (inspect.getdoc(method) or "").partition("\n")[0]
    return f"  {name:<16} {entry.source}, {method.__module__}.{method.__qualname__}\n      {summary}".rstrip()


def _failure(failure: Failure) -> str:
    entry_point = f", entry point '{failure.source.entry_point}'" if failure.source.entry_point else ""
    return f"  {failure.source}{entry_point}\n      {type(failure.error).__name__}: {failure.error}"


if __name__ == "__main__":
    sys.exit(main())
