"""The built-in methods register as a stranger's do: through the hook."""

from __future__ import annotations

from mmm_fusion.hookspecs import hookimpl
from mmm_fusion.interface import FusionMethod
from mmm_fusion.methods import (
    MLP,
    Add,
    Concat,
    CrossAttention,
    Gated,
    LDPv2,
    LowRank,
    Matmul,
    MobileVLM,
    Perceiver,
    QFormer,
    VisualExpert,
)


@hookimpl
def mmm_fusion_methods() -> list[type[FusionMethod]]:
    """Offer the methods of this package."""
    return [
        Add,
        Concat,
        CrossAttention,
        Gated,
        LDPv2,
        LowRank,
        Matmul,
        MLP,
        MobileVLM,
        Perceiver,
        QFormer,
        VisualExpert,
    ]
