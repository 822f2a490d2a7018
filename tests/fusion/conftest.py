"""Distributions that are installed for one test: a folder on `sys.path`, with metadata as pip writes it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmm_fusion import discovery, loading, local


class Site:
    """A site-packages of the test's own, and others that come after it on `sys.path`."""

    def __init__(self, folder: Path, path: list[str]) -> None:
        self.folder, self.path = folder, path
        path.append(str(folder))

    def add_folder(self, folder: Path) -> Site:
        folder.mkdir()
        return Site(folder, self.path)

    def install(
        self, name: str, version: str, source: str = "", *, entry_points: str | None = None, metadata: str | None = None
    ) -> None:
        """A distribution of one module; by default its one entry point has the name of the module."""
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n" if metadata is None else metadata)
        (info / "entry_points.txt").write_text(entry_points or f"[mmm_fusion]\n{module} = {module}\n")
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The plug-ins of this folder are the only ones installed, and none is loaded yet."""
    loaded, path = set(sys.modules), []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(discovery, "distributions", lambda: importlib.metadata.distributions(path=path))
    for variable in ("MMM_FUSION_PLUGINS", "MMM_FUSION_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(local, "_here", {})
    loading.installed.cache_clear()
    yield Site(tmp_path, path)
    loading.installed.cache_clear()
    for name in set(sys.modules) - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
