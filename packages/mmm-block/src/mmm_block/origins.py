"""Where a fusion method comes from, in a form that files keep: who reads them later may have another, or none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from mmm_fusion.plugins import registry

DISTRIBUTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[A-Za-z0-9.+!_-]+")


def source(name: str) -> dict[str, str]:
    """Where a method comes from: its distribution and version, or its file, or its module.

    Args:
        name: The method.
    Returns:
        The keys distribution and version, or place, with the sha256 of a file; nothing for a method that is not
        registered.
    """
    known = registry().methods
    if name not in known:
        return {}
    found = known[name].source
    if file := file_of(name):  # its name alone, for folders are passed on
        return {"place": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    if found.place:
        return {"place": Path(found.place).name}
    return {"distribution": found.distribution, "version": found.version}


def file_of(name: str) -> Path | None:
    """The file that gave a method.

    Args:
        name: A registered method.
    Returns:
        Its full path; None for one that is installed, or whose class was registered.
    """
    place = Path(registry().methods[name].source.place)
    return place.resolve() if place.is_file() else None


def told(value: object) -> dict[str, str]:
    """What a file says that `source` returned, and might be anything: the texts in it that can be printed."""
    if not isinstance(value, Mapping):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str) and text.isprintable()}


def origin(source: Mapping[str, str]) -> str:
    """What `source` returned, to be read.

    Args:
        source: Its keys and values.
    Returns:
        Such as `mmm-fusion 0.1.0` or `own.py (sha256 1f2e3d4c5b6a)`.
    """
    match source:
        case {"place": place, "sha256": digest}:
            return f"{place} (sha256 {digest[:12]})"
        case {"place": place}:
            return place
        case {"distribution": name, "version": version}:
            return f"{name} {version}".rstrip()
    return "nowhere"


def requirement(source: Mapping[str, str]) -> str:
    """The distribution of a method as pip takes it.

    Args:
        source: What `source` returned, or `told`.
    Returns:
        Such as `mmm-fusion==0.1.0`; nothing where there is none, or what stands there is no name and no version.
    """
    name, version = source.get("distribution"), source.get("version")
    if name and version and DISTRIBUTION.fullmatch(name):
        return f"{name}=={version}" if VERSION.fullmatch(version) else name
    return ""
