"""One pre-norm residual Mamba layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_core import Mamba, MambaState

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class MambaLayer(nn.Module):
    """`x + dropout(mamba(norm(x)))`, with the names of mamba_ssm's blocks: `norm`, `mixer`."""

    def __init__(self, dim: int, dropout: float, *, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba(dim, d_state=d_state, d_conv=d_conv, expand=expand)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b m d"],
        state: MambaState | None = None,
        *,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> tuple[Float[Tensor, "b m d"], MambaState]:
        """Mix the tokens, (b, m, dim), with those before them; return the state behind the last as well."""
        branch, state = self.mixer(self.norm(x), state, return_state=True, cu_seqlens=cu_seqlens)
        return x + self.dropout(branch), state
