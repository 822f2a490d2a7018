"""Loads the installed plug-ins once, and keeps the broken ones out and on record."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import TypeVar

import pluggy

from mmm_fusion import hookspecs
from mmm_fusion.discovery import GROUP, Plugin, Source, candidates, in_order, plugins_of, wanted
from mmm_fusion.errors import DuplicateMethodError, PluginError
from mmm_fusion.interface import FusionMethod
from mmm_fusion.rules import check_method

S = TypeVar("S")
T = TypeVar("T")

MOST = 1000
"""Methods of one plug-in; a hook that yields more has no end."""

_lock = threading.RLock()
_loading = threading.Event()


@dataclass(frozen=True)
class Registered:
    """A method that can be made by name, and where it comes from."""

    method: type[FusionMethod]
    source: Source


@dataclass(frozen=True)
class Failure:
    """What was kept out, and why."""

    source: Source
    error: BaseException

    def __str__(self) -> str:
        return f"{self.source} ({type(self.error).__name__}: {text_of(self.error)})"


@dataclass(frozen=True)
class Registry:
    """What is loaded, by name: built-ins first, then the others, each in the order of their names.

    `contested` are the names that more than one distribution claims, with the text of the error.
    """

    methods: dict[str, Registered]
    contested: dict[str, str]
    failures: tuple[Failure, ...]


def loaded() -> Registry:
    """What is installed. The first thread to ask loads it, and others wait for that.

    Raises:
        PluginError: A plug-in asks while it is loaded; or, under `MMM_FUSION_STRICT=1`, one does not load.
    """
    with _lock:
        if _loading.is_set():
            raise PluginError(
                "available, create, register and the like cannot be called while plug-ins load. "
                "Call them in functions that run later."
            )
        _loading.set()
        try:
            return installed()
        finally:
            _loading.clear()


@functools.cache
def installed() -> Registry:
    """Load the built-ins and all installed plug-ins, once; `installed.cache_clear()` makes the next use look again."""
    failed: list[Failure] = []
    own = Source("mmm-fusion", version("mmm-fusion"))
    offers = [Registered(method, own) for method in built_in()]
    for plugin in _chosen(failed):
        offers += _attempt(_load, plugin, plugin.source, failed)
    contested = _settle(offers, own, failed)
    if failed and os.environ.get("MMM_FUSION_STRICT", "") not in ("", "0"):
        raise PluginError(
            f"MMM_FUSION_STRICT is set, and not all plug-ins load. {listed(failed)} "
            "Repair or uninstall what fails, or leave it out by MMM_FUSION_PLUGINS."
        ) from failed[0].error
    return Registry(in_listing_order(offers), contested, tuple(failed))


def in_listing_order(offers: Iterable[Registered]) -> dict[str, Registered]:
    """Built-ins first, then by name."""
    ordered = sorted(offers, key=lambda offer: (offer.method not in built_in(), offer.method.name))
    return {offer.method.name: offer for offer in ordered}


@functools.cache
def built_in() -> list[type[FusionMethod]]:
    """The methods of this package; imported on the first use, as those of plug-ins are."""
    from mmm_fusion import builtin

    return methods_of(builtin)


def methods_of(plugin: object) -> list[type[FusionMethod]]:
    """Call the hook of one plug-in, and check what it offers.

    Args:
        plugin: A module or object with a `hookimpl` named `mmm_fusion_methods`.
    Returns:
        Its fusion methods.
    Raises:
        PluginError: What it offers breaks a rule.
    """
    # A manager of its own for each: what one does wrong when it registers cannot reach another.
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()  # refuses a hook that does not exist: a misspelt one
    offered = manager.hook.mmm_fusion_methods()
    if not offered:
        raise PluginError("no hook `mmm_fusion_methods`, marked with @hookimpl, that returns fusion methods.")
    if not isinstance(offered[0], Iterable):
        raise PluginError(f"mmm_fusion_methods must return an iterable of classes, got {offered[0]!r}.")
    methods = list(islice(offered[0], MOST + 1))
    if len(methods) > MOST:
        raise PluginError(f"mmm_fusion_methods must return at most {MOST} classes, got more: does it ever end?")
    if not methods:
        raise PluginError("mmm_fusion_methods must return at least one class, got none.")
    for method in methods:
        check_method(method)
    return methods


def _chosen(failed: list[Failure]) -> list[Plugin]:
    """The installed plug-ins that `MMM_FUSION_PLUGINS` lets through, in the order of loading."""
    names = wanted()
    if names == set():
        return []
    plugins = in_order(
        plugin for source, distribution in candidates() for plugin in _attempt(plugins_of, distribution, source, failed)
    )
    if names is None:
        return plugins
    for name in sorted(names - {plugin.source.entry_point for plugin in plugins}):
        error = PluginError(f"no installed distribution has the entry point '{name}' in the group '{GROUP}'.")
        failed.append(Failure(Source("MMM_FUSION_PLUGINS", entry_point=name), error))
    return [plugin for plugin in plugins if plugin.source.entry_point in names]


def _load(plugin: Plugin) -> list[Registered]:
    return [Registered(method, plugin.source) for method in methods_of(plugin.entry_point.load())]


def _attempt(read: Callable[[S], list[T]], what: S, source: Source, failed: list[Failure]) -> list[T]:
    """`read(what)`; or nothing, with the reason on record."""
    try:
        return read(what)
    except KeyboardInterrupt:
        raise
    # The one place that catches everything: a stranger's code runs here and may raise anything, even SystemExit. It
    # must keep nothing else from loading, and nothing is lost: listings show it, and strict mode raises it.
    except BaseException as error:
        failed.append(Failure(source, error))
        return []


def _settle(offers: list[Registered], own: Source, failed: list[Failure]) -> dict[str, str]:
    """Remove from `offers` the names claimed twice, but for the built-in's claim. Returns the text for each name."""
    claims: dict[str, list[Registered]] = {}
    for offer in offers:
        claims.setdefault(offer.method.name, []).append(offer)
    contested = {}
    for name, rivals in claims.items():
        if len(rivals) == 1:
            continue
        sources = " and ".join(str(rival.source) for rival in rivals)
        contested[name] = f"fusion method '{name}' is offered by {sources}."
        if rivals[0].source == own:
            contested[name] += " A built-in is never replaced. Give the other another name."
            del rivals[0]
        elif len({rival.source for rival in rivals}) == 1:
            contested[name] = f"fusion method '{name}' is offered twice by {rivals[0].source}. None of them is loaded. "
            contested[name] += "Give one another name."
        else:
            apart = len({rival.source.entry_point for rival in rivals}) == len(rivals)
            choose = ", or choose one by MMM_FUSION_PLUGINS" if apart else ""
            contested[name] += f" None of them is loaded. Uninstall one{choose}."
        for rival in rivals:
            offers.remove(rival)
            failed.append(Failure(rival.source, DuplicateMethodError(contested[name])))
    return contested


def listed(failed: Iterable[Failure]) -> str:
    """The failures in one sentence."""
    return f"Failed to load: {', '.join(map(str, failed))}."


def text_of(error: BaseException) -> str:
    """What an exception says, in one line; a stranger's may fail to."""
    try:
        return " ".join(str(error).split())
    except Exception as another:
        return f"its text cannot be had, for {type(another).__name__}"
