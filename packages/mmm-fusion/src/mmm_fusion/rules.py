"""What a class must be to register as a fusion method, as far as a look at it tells without making one."""

from __future__ import annotations

import inspect
import re

from mmm_fusion.errors import PluginError
from mmm_fusion.image_first import ImageFirst
from mmm_fusion.interface import CONTRACT, FusionMethod

SHARED = ("dim", "image_dim", "heads", "dropout")
"""The constructor's arguments that are the same for every method."""


def check_method(method: object) -> None:
    """Refuse what is not a fusion method of this contract.

    Args:
        method: What a plug-in offers: a class, if all is well.
    Raises:
        PluginError: Names the class and the rule.
    """
    if not (inspect.isclass(method) and issubclass(method, FusionMethod)):
        raise PluginError(f"a fusion method must be a subclass of FusionMethod, got {method!r}.")
    where = f"{method.__module__}.{method.__qualname__}"
    name = getattr(method, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
        raise PluginError(
            f"{where}: `name` must be lower case letters, digits and _, beginning with a letter, got {name!r}."
        )
    if method.contract != CONTRACT:
        raise PluginError(
            f"{where}: `contract` must be {CONTRACT}, as this mmm-fusion speaks, got {method.contract!r}, "
            f"{_other_contract(method.contract)}"
        )
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise PluginError(f"{where}: must define {missing}.")
    _check_signature(where, method, "(dim, image_dim, *, heads, dropout, **options with defaults)", SHARED, 2)
    inputs = ("text", "image", "text_mask", "image_mask", "image_grid")
    call = "(self, text, image, *, text_mask=None, image_mask=None, image_grid=None)"
    _check_signature(f"{where}.forward", method.forward, call, ("self", *inputs), 3)
    reading, joining = ("self", "image", "image_mask", "image_grid"), ("self", "text", "memory", "text_mask")
    call = "(self, image, *, image_mask=None, image_grid=None)"
    _check_signature(f"{where}.read", method.read, call, reading, 2)
    call = "(self, text, memory, *, text_mask=None)"
    _check_signature(f"{where}.join", method.join, call, joining, 3)
    _check_signature(f"{where}.extend", method.extend, call, joining, 3)
    _check_parts(where, method)


def _check_parts(where: str, method: type[FusionMethod]) -> None:
    """`ImageFirst` makes one of `join` and `extend` from the other: with both, its own would call them in a circle."""
    if not issubclass(method, ImageFirst):
        return
    parts = {part: _definer(method, part) for part in ("join", "extend")}
    if ImageFirst not in parts.values():
        got = " and ".join(f"{part} of {definer.__qualname__}" for part, definer in parts.items())
        raise PluginError(
            f"{where}: of `join` and `extend` a subclass of ImageFirst must define one, its bases included, got {got}. "
            "Define the one that the base has."
        )


def _definer(method: type, name: str) -> type:
    return next(each for each in method.__mro__ if name in each.__dict__)


def _other_contract(contract: object) -> str:
    """What to do about a contract that this package does not speak."""
    if not isinstance(contract, int) or contract < 1:
        return "which never was one. Set it to the number of the contract that the class is written for."
    if contract > CONTRACT:
        return "which is newer. Upgrade mmm-fusion, or install an older version of the plug-in."
    return "which is older. Upgrade the plug-in, or install an older version of mmm-fusion."


def _check_signature(where: str, function: object, expected: str, names: tuple[str, ...], positional: int) -> None:
    """`function` can be called with `names`, the first of them by position, the rest by keyword, and nothing else."""
    signature = inspect.signature(function)  # type: ignore[arg-type]  # a class or a function
    try:
        bound = signature.bind(*names[:positional], **dict.fromkeys(names[positional:]))
    except TypeError:
        bound = None
    if bound is None or [bound.arguments.get(name) for name in names[:positional]] != list(names[:positional]):
        raise PluginError(f"{where}: the signature must be {expected}, got {signature}.")
