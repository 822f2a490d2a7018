"""The scan of a system as mamba_ssm admits them: constant B and C beside those that vary, and complex A.

Channel-last inside. A constant B or C is one for each channel, which the kernels take as a group a channel; complex
numbers run in pure torch. Both go piece by piece along `l`, so that no gradient holds an `(l, e, n)` tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.scan import selective_scan
from mmm_core.scan.problem import SOFTPLUS_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        outs, state = [], u.new_zeros(u.shape[0], *self.A.shape, dtype=self._dtype(u, delta, z))
        for x, step, gate, B, C in _pieces(u, delta, z, self.B, self.C):
            B, C = (y.expand(*x.shape[:2], -1, -1) if y.ndim == 2 else _grouped(y, u.shape[2]) for y in (B, C))
            out, state = self._scan_real(x, step, gate, B, C, state)
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
        pair = torch.promote_types(dtype, torch.complex64)
        A, B, C = (y.to(pair) for y in (self.A, self.B, self.C))
        recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # in the backward
        ys, state = [], A.new_zeros(u.shape[0], *A.shape)
        for now in _pieces(x, step, B, C):
            y, state = recomputed(_complex_piece, *now, A, state)
            ys.append(y)
        out = torch.cat(ys, dim=1)
        out = out if self.D is None else out + x * self.D.to(dtype)
        return (out if z is None else out * F.silu(z.to(dtype))).to(u.dtype), state

    def _dtype(self, *sequences: Tensor | None) -> torch.dtype:
        """The dtype of the arithmetic, that of the real part where it is complex."""
        return arithmetic_dtype((*sequences, self.A.real, self.B.real, self.C.real, self.D, self.delta_bias))


def _complex_piece(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The ungated output of a few positions, twice the real part, and the state behind them."""
    decay = (delta[..., None] * A).exp()  # (b, c, e, n)
    B, C = (x if x.ndim == 2 else _grouped(x, u.shape[2]) for x in (B, C))
    inputs = (delta * u)[..., None] * B
    states = []
    for factor, entering in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        h = factor * h + entering
        states.append(h)
    whole = torch.stack(states, dim=1) if states else inputs
    return 2 * (whole * C).sum(-1).real, h


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The tensors piece by piece along `l`, one piece at least; a constant one, (e, n), and None as they are."""
    first = tensors[0]
    assert first is not None
    count = max(1, -(-first.shape[1] // PIECE))
    return zip(*(repeat(x, count) if x is None or x.ndim == 2 else x.split(PIECE, dim=1) for x in tensors), strict=True)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """A varying B or C with so many groups, (b, l, groups, n); a view of one that has them, or has a single one."""
    if x.shape[2] in (1, groups):
        return x.expand(-1, -1, groups, -1)
    return x.repeat_interleave(groups // x.shape[2], dim=2)
