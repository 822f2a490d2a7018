"""The forward of transformers' Mamba-1 mixers on our kernels: Mamba's, Falcon-Mamba's and Jamba's.

Everything else stays transformers': the parameters; the projections and norms, which are called as modules, so that an
adapter in their place is heard; and the cache, which is filled by its own methods and holds what it holds without us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mmm_core.conv import causal_conv1d, causal_conv1d_update
from mmm_core.layers.selection import step_sizes, transition
from mmm_core.products import apply_linear
from mmm_core.scan import selective_scan, selective_state_update

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from jaxtyping import Float, Shaped
    from torch import Tensor

SILU = ("silu", "swish")


class AcceleratedMixer(nn.Module):
    """Stands before the class of a mixer, in a class that `accelerated` makes, and takes the place of its `forward`.

    It adds no attribute to the mixer. Pickle and deepcopy know the class by `original`, which can be imported.
    """

    original: ClassVar[type[Any]]  # the class of transformers, or what another library made of it

    activation: str
    act: nn.Module
    in_proj: nn.Module
    conv1d: nn.Conv1d
    x_proj: nn.Module
    dt_proj: nn.Module
    out_proj: nn.Module
    dt_layernorm: nn.Module  # and those of B and C: in Falcon-Mamba and in Jamba
    b_layernorm: nn.Module
    c_layernorm: nn.Module
    A_log: Tensor
    D: Tensor
    layer_idx: int
    conv_kernel_size: int
    time_step_rank: int
    ssm_state_size: int

    def forward(
        self,
        hidden_states: Float[Tensor, "b l d"],
        cache: Any = None,
        attention_mask: Shaped[Tensor, "b l"] | None = None,
        *,
        cache_params: Any = None,
    ) -> Float[Tensor, "b l d"]:
        """Mix tokens with those before them.

        Args:
            hidden_states: Tokens, `(b, l, d)`.
            cache: transformers' cache, or None. What it holds of the tokens before is read, and written anew.
            attention_mask: `(b, l)`, zero where a token is padding, which no other then sees.
            cache_params: What transformers calls `cache` before 5.24.
        Returns:
            `(b, l, d)`.
        """
        cache = cache_params if cache is None else cache
        known = cache is not None and cache.has_previous_state(self.layer_idx)
        if known and attention_mask is None and hidden_states.shape[1] == 1 and not torch.is_grad_enabled():
            layer = cache.layers[self.layer_idx]
            if not layer.record_past:  # else it will be asked to take tokens back, and grows
                return self._step(hidden_states[:, 0], layer.conv_states[0], layer.recurrent_states[0]).unsqueeze(1)
        x, z = apply_linear(self.in_proj, masked(hidden_states, attention_mask)).chunk(2, dim=-1)  # (b, l, e)
        inputs, before, length = x, None, x.shape[1]
        if cache is not None:
            if known:  # not as it stands: the backward may need it, and the cache writes the next one over it
                before = cache.layers[self.layer_idx].recurrent_states[0].clone()
            # The cache gives these inputs behind those of the tokens before.
            inputs = cache.update_conv_state(x.mT, self.layer_idx, conv_kernel_size=self.conv_kernel_size).mT
        x = self._convolve(causal_conv1d, inputs, self.conv1d.weight.squeeze(1))
        x = masked(x if cache is None else x[:, -length:], attention_mask)
        y, state = selective_scan(
            *self._selected(x, z), delta_softplus=True, initial_state=before, return_final_state=True
        )
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        return apply_linear(self.out_proj, y)

    def _step(
        self, token: Float[Tensor, "b d"], conv_state: Float[Tensor, "b e k"], ssm_state: Float[Tensor, "b e n"]
    ) -> Float[Tensor, "b d"]:
        """Mix one token with those before it, and write the cache's states where they stand."""
        x, z = apply_linear(self.in_proj, token).chunk(2, dim=-1)  # (b, e)
        # Their state holds k inputs, of which the next convolution sees k - 1: a tap of zero for the oldest.
        taps = F.pad(self.conv1d.weight.squeeze(1), (1, 0))
        x = self._convolve(causal_conv1d_update, x, conv_state, taps)
        y = selective_state_update(ssm_state, *self._selected(x, z), delta_softplus=True)
        return apply_linear(self.out_proj, y)

    def _convolve(self, operation: Callable[..., Any], *tensors: Tensor) -> Tensor:
        """The convolution with its activation, which is a part of the kernel where it is SiLU."""
        fused: Literal["silu"] | None = "silu" if self.activation in SILU else None
        x: Tensor = operation(*tensors, self.conv1d.bias, activation=fused)
        return x if fused else self.act(x)

    def _selected(self, x: Tensor, z: Tensor) -> tuple[Any, ...]:
        """What the scan takes: `u`, `delta`, `A`, `B`, `C`, `D`, `z` and `delta_bias`, for a text or for one token."""
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        dt, B, C = apply_linear(self.x_proj, x).split(sizes, dim=-1)
        if hasattr(self, "dt_layernorm"):
            dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
        delta, bias = step_sizes(self.dt_proj, dt)
        return x, delta, transition(self.A_log), B, C, self.D, z, bias

    def extra_repr(self) -> str:
        """What `print(model)` shows of a layer."""
        return ", ".join(each for each in (super().extra_repr(), "accelerated by mmm_core") if each)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (blank, (self.original,), *super().__reduce_ex__(max(protocol, 2))[2:])


_CLASSES: dict[type[Any], type[AcceleratedMixer]] = {}


def accelerated(original: type[Any]) -> type[AcceleratedMixer]:
    """The class of a mixer with our forward: the same one each time, with the name that others look for."""
    if original not in _CLASSES:
        names = {"original": original, "__module__": original.__module__, "__qualname__": original.__qualname__}
        _CLASSES[original] = type(original.__name__, (AcceleratedMixer, original), names)
    return _CLASSES[original]


def blank(original: type[Any]) -> AcceleratedMixer:
    """An accelerated mixer that pickle or deepcopy is about to fill."""
    cls = accelerated(original)
    mixer: AcceleratedMixer = cls.__new__(cls)
    return mixer


def masked(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Zeros where a token is padding."""
    return x if attention_mask is None else (x * attention_mask.unsqueeze(-1)).to(x.dtype)
