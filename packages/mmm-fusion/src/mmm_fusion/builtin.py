"""The built-in methods register as a stranger's do: through the hook."""

from __future__ import annotations

from .hookspecs import hookimpl
from .interface import FusionMethod
from .methods import MLP, Add, Concat, VisualExpert


@hookimpl
def mmm_fusion_methods() -> list[type[FusionMethod]]:
    """Offer the four methods of this package."""
    return [Add, Concat, MLP, VisualExpert]
