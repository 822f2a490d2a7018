"""One pre-norm residual Mamba layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import nn

from mmm_core import Mamba, MambaState

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class MambaLayer(nn.Module):
    """`x + dropout(mamba(norm(x)))`, with the names of mamba_ssm's blocks: `norm`, `mixer`.

    Args:
        dim: Width of the tokens.
        dropout: Rate on the branch, in training only.
        norm_eps: Epsilon of the norm.
        mixer: Further arguments of `Mamba`.
    """

    def __init__(self, dim: int, dropout: float, *, norm_eps: float = 1e-5, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=norm_eps)
        self.mixer = Mamba(dim, **mixer)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b m d"],
        state: MambaState | None = None,
        *,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> tuple[Float[Tensor, "b m d"], MambaState]:
        """Mix the tokens, (b, m, dim), with those before them; return the state behind the last as well.

        `x` stays in its dtype, float32 say, where the weights are narrower: the branch alone is in theirs.
        """
        branch, state = self.mixer(self._normed(x), state, return_state=True, cu_seqlens=cu_seqlens)
        return x + self.dropout(branch), state

    def step(self, x: Float[Tensor, "b d"], state: MambaState) -> Float[Tensor, "b d"]:
        """Mix one token of each row, and write the state in place."""
        return x + self.mixer.step(self._normed(x), state)

    def _normed(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm)


def rms_norm(x: Float[Tensor, "*b d"], norm: nn.RMSNorm) -> Float[Tensor, "*b d"]:
    """`norm(x)`, computed in the dtype of `x` and given in that of the norm's weight."""
    normed = F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)  # fused where dtypes agree alone
    return normed.to(norm.weight.dtype)
