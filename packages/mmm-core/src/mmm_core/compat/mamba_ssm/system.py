"""The scan of a system as mamba_ssm admits them: constant B and C beside those that vary, and complex A.

Channel-last inside. A constant B or C is one for each channel, which the kernels take as a group a channel; complex
numbers run in pure torch. Both go piece by piece along `l`, so that no gradient holds an `(l, e, n)` tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.scan import selective_scan
from mmm_core.scan.problem import SOFTPLUS_THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 64  # positions


@dataclass(frozen=True)
class System:
    """All but the sequences of a scan: B and C are constant, `(e, n)`, or vary, `(b, l, g, n)`; complex where A is."""

    A: Tensor  # (e, n)
    B: Tensor
    C: Tensor
    D: Tensor | None  # (e,)
    delta_bias: Tensor | None  # (e,)
    delta_softplus: bool

    def scan(self, u: Tensor, delta: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, (b, l, e), and the last state, (b, e, n)."""
        if self.A.is_complex():
            return self._scan_complex(u, delta, z)
        if self.B.ndim == self.C.ndim == 4:
            groups = max(self.B.shape[2], self.C.shape[2])
            return self._scan_real(u, delta, z, _grouped(self.B, groups), _grouped(self.C, groups), None)
        outs, state = [u[:, :0]], u.new_zeros(u.shape[0], *self.A.shape, dtype=self._dtype(u, delta, z))
        for piece in _pieces(u.shape[1]):
            x, gate = u[:, piece], None if z is None else z[:, piece]
            B, C = (
                y.expand(*x.shape[:2], -1, -1) if y.ndim == 2 else _grouped(y[:, piece], u.shape[2])
                for y in (self.B, self.C)
            )
            out, state = self._scan_real(x, delta[:, piece], gate, B, C, state)
            outs.append(out)
        return torch.cat(outs, dim=1), state

    def _scan_real(
        self, u: Tensor, delta: Tensor, z: Tensor | None, B: Tensor, C: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, last = selective_scan(
            u, delta, self.A, B, C, self.D, z, self.delta_bias,
            delta_softplus=self.delta_softplus, initial_state=state, return_final_state=True,
        )  # fmt: skip
        return out, last

    def _scan_complex(self, u: Tensor, delta: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = self._dtype(u, delta, z)
        x, step = u.to(dtype), delta.to(dtype)
        if self.delta_bias is not None:
            step = step + self.delta_bias.to(dtype)
        if self.delta_softplus:
            step = F.softplus(step, threshold=SOFTPLUS_THRESHOLD)
        A, B, C = (y.to(dtype.to_complex()) for y in (self.A, self.B, self.C))
        recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # in the backward
        ys, state = [x[:, :0]], A.new_zeros(u.shape[0], *A.shape)
        for piece in _pieces(u.shape[1]):
            now = [y if y.ndim == 2 else y[:, piece] for y in (B, C)]
            y, state = recomputed(_complex_piece, x[:, piece], step[:, piece], A, *now, state)
            ys.append(y)
        out = torch.cat(ys, dim=1)
        out = out if self.D is None else out + x * self.D.to(dtype)
        return (out if z is None else out * F.silu(z.to(dtype))).to(u.dtype), state

    def _dtype(self, *sequences: Tensor | None) -> torch.dtype:
        """The dtype of the arithmetic, that of the real part where it is complex."""
        return arithmetic_dtype((*sequences, self.A.real, self.B.real, self.C.real, self.D, self.delta_bias))


def _complex_piece(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The ungated output of a few positions, twice the real part, and the state behind them."""
    decay = (delta[..., None] * A).exp()  # (b, c, e, n)
    B, C = (x if x.ndim == 2 else _grouped(x, u.shape[2]) for x in (B, C))
    inputs = (delta * u)[..., None] * B
    states = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + inputs[:, t]
        states.append(h)
    return 2 * (torch.stack(states, dim=1) * C).sum(-1).real, h


def _pieces(length: int) -> list[slice]:
    return [slice(start, start + PIECE) for start in range(0, length, PIECE)]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """A varying B or C with so many groups, (b, l, groups, n); a view of one that has them, or has a single one."""
    if x.shape[2] in (1, groups):
        return x.expand(-1, -1, groups, -1)
    return x.repeat_interleave(groups // x.shape[2], dim=2)
