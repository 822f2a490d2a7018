"""Finds the plug-ins: the entry points of the group `mmm_fusion` in installed distributions. Imports none of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path

from mmm_fusion.errors import PluginError
from mmm_fusion.hookspecs import PROJECT

GROUP = PROJECT


@dataclass(frozen=True)
class Source:
    """Where methods come from: a distribution and its entry point, or this process.

    Attributes:
        distribution: Empty for what was registered in this process.
        version: Of the distribution.
        entry_point: Its name.
        place: For what was registered in this process, the file as it was given, or else the module.
    """

    distribution: str = ""
    version: str = ""
    entry_point: str = ""
    place: str = ""

    def __str__(self) -> str:
        return (
            f"{self.place} (registered in this process)"
            if self.place
            else f"{self.distribution} {self.version}".rstrip()
        )


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is installed, and not imported yet."""

    source: Source
    entry_point: EntryPoint


def candidates() -> Iterator[tuple[Source, Distribution]]:
    """The distributions that may have plug-ins, each under the name of its metadata folder.

    That name is there even where the metadata cannot be read.
    """
    for distribution in distributions():
        yield Source(Path(str(getattr(distribution, "_path", distribution))).name), distribution


def plugins_of(distribution: Distribution) -> list[Plugin]:
    """The plug-ins of one distribution.

    Raises:
        PluginError: Its metadata lacks a name or a version.
        Exception: Its metadata cannot be read or parsed.
    """
    # Most distributions have no plug-in: a look at the text is much quicker than parsing it.
    if GROUP not in (distribution.read_text("entry_points.txt") or ""):
        return []
    entry_points = [each for each in distribution.entry_points if each.group == GROUP]
    metadata = distribution.metadata
    if entry_points and not ("Name" in metadata and "Version" in metadata):
        raise PluginError("its metadata has no Name or no Version. Install it again.")
    return [Plugin(Source(metadata["Name"], metadata["Version"], each.name), each) for each in entry_points]


def in_order(plugins: Iterable[Plugin]) -> list[Plugin]:
    """By distribution, then by entry point. Of two copies on `sys.path` the first, as Python imports."""
    first: dict[tuple[str, str], Plugin] = {}
    for plugin in plugins:
        distribution = re.sub(r"[-_.]+", "-", plugin.source.distribution).lower()
        first.setdefault((distribution, plugin.source.entry_point), plugin)
    return [first[key] for key in sorted(first)]


def wanted() -> set[str] | None:
    """The entry points that `MMM_FUSION_PLUGINS` names; None where it is not set: all."""
    names = os.environ.get("MMM_FUSION_PLUGINS")
    return None if names is None else {name.strip() for name in names.split(",")} - {""}
