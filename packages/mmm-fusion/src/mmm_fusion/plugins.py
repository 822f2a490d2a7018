"""The registry: which methods there are, installed and of this process, and making one by its name."""

from __future__ import annotations

from typing import Any

from mmm_fusion.errors import DuplicateMethodError, UnknownMethodError, nearest
from mmm_fusion.interface import FusionMethod
from mmm_fusion.loading import Failure, Registered, Registry, in_listing_order, listed, loaded
from mmm_fusion.local import registered_here
from mmm_fusion.options import check_options


def available() -> tuple[type[FusionMethod], ...]:
    """The fusion methods that can be made. The first call loads the plug-ins.

    Returns:
        The classes, built-ins first, then by name.
    Raises:
        PluginError: Under `MMM_FUSION_STRICT=1`, if a plug-in does not load.
    """
    return tuple(entry.method for entry in registry().methods.values())


def failures() -> tuple[Failure, ...]:
    """The plug-ins that were kept out, each with its distribution and exception.

    A distribution whose entry points cannot be read is among them: it may have a plug-in.

    Returns:
        The records, in the order of loading.
    Raises:
        PluginError: Under `MMM_FUSION_STRICT=1`, if there are any.
    """
    return registry().failures


def create(name: str, dim: int, image_dim: int, *, heads: int, dropout: float, **options: Any) -> FusionMethod:
    """Make a fusion method by its name.

    Args:
        name: The `name` of one of `available()`.
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Attention heads, for the methods that attend; divides `dim`.
        dropout: Probability, from 0 to below 1.
        options: The method's own.
    Returns:
        The module, newly initialised.
    Raises:
        UnknownMethodError: No such method; names the nearest, and what failed to load.
        DuplicateMethodError: Two distributions claim the name; names both.
        ArgumentError: An option that the method does not have, or one of another type than its default, or an
            argument out of range.
        PluginError: Under `MMM_FUSION_STRICT=1`, if a plug-in does not load.
    """
    method = find(name).method
    check_options(method, options)
    return method(dim, image_dim, heads=heads, dropout=dropout, **options)


def find(name: str) -> Registered:
    """The method of a name, with where it comes from; raises as `create` does."""
    known = registry()
    if not isinstance(name, str):
        raise UnknownMethodError(_unknown(name, known))
    if name in known.contested and name not in known.methods:
        raise DuplicateMethodError(known.contested[name])
    if name not in known.methods:
        raise UnknownMethodError(_unknown(name, known))
    return known.methods[name]


def registry() -> Registry:
    """What is installed, loaded on the first call, and what was registered in this process since."""
    known, here = loaded(), registered_here()
    if not here:
        return known
    return Registry(in_listing_order([*known.methods.values(), *here]), known.contested, known.failures)


def _unknown(name: object, known: Registry) -> str:
    close = nearest(str(name), known.methods) or f" Registered: {', '.join(known.methods)}."
    failed = f" {listed(known.failures)}" if known.failures else ""
    return f"fusion method {name!r} is not registered.{close}{failed} See `python -m mmm_fusion`."
