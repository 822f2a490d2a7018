"""The fusion methods of this package register as a stranger's do: by an entry point, through the hook."""

from __future__ import annotations

from mmm_block.methods import CrossMamba, State
from mmm_fusion import FusionMethod, hookimpl


@hookimpl
def mmm_fusion_methods() -> list[type[FusionMethod]]:
    """Offer `cross_mamba` and `state`."""
    return [CrossMamba, State]
