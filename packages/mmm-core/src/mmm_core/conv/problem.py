"""One call of the causal convolution as the backends see it, and the gradients they return."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.sequences import Span, spans, state_rows

if TYPE_CHECKING:
    from torch import Tensor


class Gradients(NamedTuple):
    """The gradients of a call's floating inputs; an absent input's is an empty tensor."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial_state: Tensor


@dataclass(frozen=True)
class Problem:
    """The arguments of a call, validated."""

    x: Tensor  # (b, l, e)
    weight: Tensor  # (e, k)
    bias: Tensor | None  # (e,)
    initial_state: Tensor | None  # (b or s, e, k-1)
    cu_seqlens: Tensor | None  # (s+1,)
    silu: bool
    reverse: bool

    @property
    def floating(self) -> tuple[Tensor | None, ...]:
        """The floating inputs, in the order of `Gradients`."""
        return (self.x, self.weight, self.bias, self.initial_state)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the sums: float64 where an input is, else float32."""
        return arithmetic_dtype(self.floating)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of the initial and the final state, (b or s, e, k-1)."""
        e, k = self.weight.shape
        return (state_rows(self.x.shape[0], self.cu_seqlens), e, k - 1)

    @cached_property
    def spans(self) -> list[Span]:
        """The sequences of the call."""
        return spans("causal_conv1d", self.x.shape[1], self.cu_seqlens)

    def new_gradients(self) -> Gradients:
        """Room for the gradients: that of x unwritten, in its dtype; the others zero, to add to."""
        return Gradients(self.room(self.x), *(self._zeros(tensor) for tensor in self.floating[1:]))

    def room(self, tensor: Tensor | None) -> Tensor:
        """Unwritten memory for the gradient of an input, in its dtype; none where it is absent."""
        if tensor is None:
            return self.x.new_empty(0)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def _zeros(self, tensor: Tensor | None) -> Tensor:
        return self.x.new_zeros(0 if tensor is None else tensor.shape, dtype=self.dtype)
