"""The Mamba layer for encoders: each token sees those before it and those after it.

Parameter names are those of Vim's `bimamba_type="v2"`, so that its checkpoints load as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mmm_core.conv import causal_conv1d
from mmm_core.errors import ShapeError, expect_shape
from mmm_core.layers.mamba import init_ssm
from mmm_core.layers.selection import step_sizes, transition
from mmm_core.scan import selective_scan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class BiMamba(nn.Module):
    """A Mamba mixer that reads in both directions: two scans share the projections into and out of the inner width.

    Each direction has a convolution and a selection of its own, and both have the gate in common; `out_proj` reads the
    mean of the two. The scan from right to left runs as such: nothing is flipped or copied. It is one residual branch
    without its norm, as `Mamba` is.

    Args:
        dim: Width of the tokens.
        d_state: State size `n` of each inner channel.
        d_conv: Taps `k` of the convolutions.
        expand: The inner width is `e = expand * dim`.
        dt_rank: Rank of the step sizes' projections; None: ceil(dim / 16).
        bias: Whether `in_proj` and `out_proj` have biases.
        conv_bias: Whether the convolutions have one.
    Raises:
        ValueError: A size is less than 1.
    Source:
        arXiv:2401.09417 §3.3 (Vision Mamba), the mean as in its released models: a checkpoint that was trained with
        the sum wants its `out_proj.weight` doubled.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        sizes = {"dim": dim, "d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"BiMamba: `{name}` must be at least 1, got {size}.")
        inner = expand * dim
        self.dim = dim

        def conv() -> nn.Conv1d:
            return nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias)

        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv1d, self.conv1d_b = conv(), conv()
        self.x_proj, self.x_proj_b = (nn.Linear(inner, dt_rank + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(dt_rank, inner) for _ in range(2))
        self.A_log, self.A_b_log = (nn.Parameter(torch.empty(inner, d_state)) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(inner)) for _ in range(2))
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        for A_log, D, dt_proj in ((self.A_log, self.D, self.dt_proj), (self.A_b_log, self.D_b, self.dt_proj_b)):
            init_ssm(A_log, dt_proj)
            for parameter in (A_log, D, dt_proj.bias):  # an optimiser that looks leaves these undecayed
                parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Mix tokens with those before and after them.

        Args:
            x: Tokens, `(b, l, dim)`.
            mask: True for a real token, `(b, l)`; padding may stand anywhere. None: all are real.
            cu_seqlens: Cumulative lengths `(s+1,)` of s texts packed into one row, in place of a mask.
        Returns:
            `(b, l, dim)`. What stands at padding means nothing.
        Raises:
            ShapeError: `x` is not `(b, l, dim)`, or the mask is not `(b, l)`.
            TypeError: The mask is not bool.
            ValueError: There are both a mask and `cu_seqlens`.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ShapeError(f"BiMamba: `x` must be (b, l, dim) with dim = {self.dim}, got {tuple(x.shape)}.")
        if mask is None:
            return self._mix(x, None, cu_seqlens)
        if cu_seqlens is not None:
            raise ValueError("BiMamba: `mask` must be None where texts are packed. Leave the padding out of the row.")
        expect_shape("BiMamba", "mask", mask, "b l", tuple(x.shape[:2]))
        if mask.dtype != torch.bool:
            raise TypeError(f"BiMamba: `mask` must be bool, True for a real token, got {mask.dtype}.")
        place = places(mask).expand_as(x)
        padding = torch.arange(x.shape[1], device=x.device) >= mask.sum(dim=1, keepdim=True)  # (b, l): now at the end
        padding = padding[..., None]
        # Zeros in its place: a gradient of zero times what is no number would be none either.
        x = torch.empty_like(x).scatter(1, place, x).masked_fill(padding, 0)
        return self._mix(x, padding, None).gather(1, place)

    def _mix(self, x: Tensor, padding: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """Both directions over tokens; `padding`, (b, l, 1), stands at the end, where the reverse one begins."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (b, l, e)
        forward = Direction(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        reverse = Direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        y = forward.read(x, z, None, cu_seqlens=cu_seqlens)
        y = y + reverse.read(x, z, padding, cu_seqlens=cu_seqlens, reverse=True)
        out: Tensor = self.out_proj(y / 2)
        return out


class Direction(NamedTuple):
    """What one of the two directions has of its own: its convolution and what it selects by."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor
    D: Tensor

    def read(self, x: Tensor, z: Tensor, padding: Tensor | None, **options: Any) -> Tensor:
        """The gated scan over x, (b, l, e); padding that it begins with leaves both states at zero."""
        x = x if padding is None else x.masked_fill(padding, 0)
        x = causal_conv1d(  # type: ignore[assignment]  # a tensor alone, where no state is asked for
            x, self.conv.weight.squeeze(1), self.conv.bias, activation="silu", **options
        )
        x = x if padding is None else x.masked_fill(padding, 0)
        rank, n = self.dt_proj.in_features, self.A_log.shape[1]
        dt, B, C = self.x_proj(x).split([rank, n, n], dim=-1)
        delta, bias = step_sizes(self.dt_proj, dt)
        y: Tensor = selective_scan(  # type: ignore[assignment]
            x, delta, transition(self.A_log), B, C, self.D, z, bias, delta_softplus=True, **options
        )
        return y


def places(mask: Bool[Tensor, "b l"]) -> Int[Tensor, "b l 1"]:
    """Where each token goes if the real ones of each row come first, and all keep their order."""
    real = mask.to(torch.int64)
    padding = 1 - real
    return torch.where(mask, real.cumsum(1), real.sum(dim=1, keepdim=True) + padding.cumsum(1))[..., None] - 1
