"""The hooks that a plug-in may implement, and the markers for them (pluggy)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from mmm_fusion.interface import FusionMethod

PROJECT = "mmm_fusion"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mmm_fusion_methods() -> Iterable[type[FusionMethod]]:  # type: ignore[empty-body]
    """Offer fusion methods.

    Called once, on the first use of the registry. Keep imports that are slow out of the module that implements
    it: every installed plug-in is imported then. The registry cannot be asked meanwhile.

    Returns:
        The classes, in any order. Each keeps the contract: see `FusionMethod`.
    """
