"""One call of the selective scan as the backends see it, and the gradients they return.

Everything that the backends share but the recurrence itself stands here: the dtype to compute in, where sequences
begin and end, delta's bias and softplus, and the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from mmm_core.arithmetic import arithmetic_dtype, silu_backward
from mmm_core.sequences import Span, spans, state_rows

if TYPE_CHECKING:
    from torch import Tensor

SOFTPLUS_THRESHOLD = 20.0  # above it softplus is the identity in float32


class Gradients(NamedTuple):
    """The gradients of a call's floating inputs; an absent input's is an empty tensor."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    delta_bias: Tensor
    initial_state: Tensor


@dataclass(frozen=True)
class Problem:
    """The arguments of a call, validated, with `B` and `C` as `(b, l, g, n)`."""

    u: Tensor  # (b, l, e)
    delta: Tensor  # (b, l, e)
    A: Tensor  # (e, n)
    B: Tensor  # (b, l, g, n)
    C: Tensor  # (b, l, g, n)
    D: Tensor | None  # (e,)
    z: Tensor | None  # (b, l, e)
    delta_bias: Tensor | None  # (e,)
    initial_state: Tensor | None  # (b or k, e, n)
    cu_seqlens: Tensor | None  # (k+1,)
    delta_softplus: bool
    reverse: bool

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """The sizes of b, l, e, g and n."""
        return (*self.u.shape, *self.B.shape[2:])

    @property
    def floating(self) -> tuple[Tensor | None, ...]:
        """The floating inputs, in the order of `Gradients`."""
        return (
            self.u,
            self.delta,
            self.A,
            self.B,
            self.C,
            self.D,
            self.z,
            self.delta_bias,
            self.initial_state,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of state and arithmetic: float64 where an input is, else float32."""
        return arithmetic_dtype(self.floating)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of the initial and the final state, (b or k, e, n)."""
        return (state_rows(self.u.shape[0], self.cu_seqlens), *self.A.shape)

    @cached_property
    def spans(self) -> list[Span]:
        """The sequences of the call."""
        return spans("selective_scan", self.u.shape[1], self.cu_seqlens)

    def first_states(self) -> Tensor:
        """A fresh copy of the states that the sequences begin with, (b or k, e, n)."""
        if self.initial_state is None:
            return self.u.new_zeros(self.state_shape, dtype=self.dtype)
        return self.initial_state.to(self.dtype, copy=True, memory_format=torch.contiguous_format)

    def step_size(self, delta: Tensor) -> Tensor:
        """Bias and softplus on a slice of delta, (..., e), in the dtype of the arithmetic."""
        delta = self._biased(delta)
        return F.softplus(delta, threshold=SOFTPLUS_THRESHOLD) if self.delta_softplus else delta

    def step_size_backward(self, delta: Tensor, grad: Tensor) -> Tensor:
        """The gradient of a slice of delta from that of its step size."""
        if not self.delta_softplus:
            return grad
        delta = self._biased(delta)
        return torch.where(delta > SOFTPLUS_THRESHOLD, grad, grad * torch.sigmoid(delta))

    def _biased(self, delta: Tensor) -> Tensor:
        delta = delta.to(self.dtype)
        return delta if self.delta_bias is None else delta + self.delta_bias.to(self.dtype)

    def new_gradients(self) -> Gradients:
        """Room for the gradients: per-position ones unwritten, in their inputs' dtypes; the others zero, to add to."""
        return Gradients(
            u=self.room(self.u),
            delta=self.room(self.delta),
            A=self._zeros(self.A),
            B=self.room(self.B),
            C=self.room(self.C),
            D=self._zeros(self.D),
            z=self.room(self.z),
            delta_bias=self._zeros(self.delta_bias),
            initial_state=self._zeros(self.initial_state),
        )

    def room(self, x: Tensor | None) -> Tensor:
        """Unwritten memory for the gradient of an input, in its dtype; none where it is absent."""
        return self.u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)

    def _zeros(self, x: Tensor | None) -> Tensor:
        return self.u.new_zeros(0 if x is None else x.shape, dtype=self.dtype)


def gate_backward(y: Tensor, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y and of z, where `grad` is that of y * silu(z)."""
    return grad * F.silu(z), silu_backward(z, grad * y)
