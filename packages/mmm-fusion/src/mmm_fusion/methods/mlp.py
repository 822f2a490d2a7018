"""`mlp`: LLaVA's projector, then as `add`.

Liu et al., Improved Baselines with Visual Instruction Tuning (LLaVA-1.5), arXiv:2310.03744: Linear, GELU, Linear.
"""

from __future__ import annotations

from torch import nn

from mmm_fusion.errors import ArgumentError
from mmm_fusion.interface import FusionMethod
from mmm_fusion.methods.add import Add


class MLP(Add):
    """Image tokens through a two-layer perceptron, and added to the text as in `add`.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens.
        ratio: Hidden width of the projector, over `dim`.
    Source:
        arXiv:2310.03744, for the projector.
    """

    name = "mlp"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float, ratio: float = 1.0) -> None:
        super().__init__(dim, image_dim, heads=heads, dropout=dropout)
        hidden = hidden_width(self, dim, ratio)
        self.proj = nn.Sequential(nn.Linear(image_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def hidden_width(method: FusionMethod, dim: int, ratio: float) -> int:
    """`ratio * dim`, or an error that names the option."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio * dim < 2**31:
        raise ArgumentError(
            f"fusion method '{method.name}': `ratio` must be a number with ratio * dim from 1 to below 2**31, "
            f"got {ratio!r}."
        )
    return int(ratio * dim)
