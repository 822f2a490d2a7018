"""The errors of this package. Each text says where, what was expected, what came, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FusionError(Exception):
    """Every error that `mmm_fusion` raises itself."""


class InputError(FusionError, ValueError):
    """A tensor given to a fusion method has the wrong shape, dtype or device."""


class ArgumentError(FusionError, ValueError):
    """An argument or option of a fusion method's constructor is unknown or out of range."""


class UnknownMethodError(FusionError, LookupError):
    """No fusion method of that name is registered."""


class DuplicateMethodError(FusionError):
    """Two distributions offer a fusion method of one name."""


class PluginError(FusionError):
    """A plug-in breaks a rule; under `MMM_FUSION_STRICT=1`, any plug-in that does not load."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A question for the name that was meant, with a space before it; empty where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.4)
    return f" Did you mean '{close[0]}'?" if close else ""
