"""One pre-norm residual Mamba layer, and the order in which a stack of them reads padded rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_core import Mamba

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class MambaLayer(nn.Module):
    """`x + dropout(mamba(norm(x)))`, with the names of mamba_ssm's blocks: `norm`, `mixer`."""

    def __init__(self, dim: int, dropout: float, *, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba(dim, d_state=d_state, d_conv=d_conv, expand=expand)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        """Mix the tokens, (b, m, dim), with those before them."""
        branch: Tensor = self.dropout(self.mixer(self.norm(x)))
        return x + branch


def real_first(mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m 1"]:
    """For each row the positions of its real tokens, in order, then those of its padding.

    A causal layer that reads a row so never meets padding before a real token, wherever the padding stood.
    """
    return mask.argsort(dim=1, descending=True, stable=True)[..., None]
