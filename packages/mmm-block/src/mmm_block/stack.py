"""`MambaStack`: pre-norm residual Mamba layers and a final norm, and the states that carry them from text to text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmm_block.layer import MambaLayer, rms_norm
from mmm_core import Mamba
from mmm_core.layers.native_step import native_stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from mmm_core import MambaState


class MambaStack(nn.Module):
    """`depth` Mamba layers and a norm; between them the tokens are in float32, whatever the weights are.

    Args:
        dim: Width of the tokens.
        depth: Number of layers.
        dropout: Rate on each layer's branch, in training only.
        norm_eps: Epsilon of the norms.
        mixer: Further arguments of `mmm_core.Mamba`.

    Attributes:
        fusion_form: What brings images to the tokens, a method and its options; None: nothing does.
        checkpointing: In training, keep each layer's input alone and compute the layer again in the backward.
    """

    fusion_form: str | None = None

    def __init__(self, dim: int, depth: int, dropout: float = 0.0, *, norm_eps: float = 1e-5, **mixer: Any) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"{type(self).__name__}: `depth` must be at least 1, got {depth}.")
        self.dim = dim
        self.checkpointing = False
        layers = [MambaLayer(dim, dropout, norm_eps=norm_eps, **mixer) for _ in range(depth)]
        with torch.no_grad():
            for layer in layers:  # as mamba_ssm: the sum of the branches starts at the scale of one
                layer.mixer.out_proj.weight /= math.sqrt(depth)
        self.layers = nn.ModuleList(layers)
        self.norm_f = nn.RMSNorm(dim, eps=norm_eps)

    def run(
        self,
        x: Float[Tensor, "b m d"],
        states: Sequence[MambaState | None] = (),
        *,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> tuple[Float[Tensor, "b m d"], tuple[MambaState, ...]]:
        """Read tokens from left to right.

        Args:
            x: Tokens, `(b, m, dim)`.
            states: What the tokens before left behind, one a layer; empty: nothing.
            cu_seqlens: Cumulative lengths `(s+1,)` of s texts packed into one row.
        Returns:
            The normed tokens after the last layer, in the dtype of the weights, and the state of each layer behind the
            last token.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        last = []
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x, state = checkpoint(layer, x, state, cu_seqlens=cu_seqlens, use_reentrant=False)
            else:
                x, state = layer(x, state, cu_seqlens=cu_seqlens)
            last.append(state)
        return rms_norm(x, self.norm_f), tuple(last)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "b d"], states: Sequence[MambaState]) -> Float[Tensor, "b d"]:
        """Read one token of each row, and write the states in place; gives what `run` gives for it."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        stepped = self._step_together(x, states)
        if stepped is None:
            for layer, state in zip(self.layers, states, strict=True):
                x = layer.step(x, state)  # type: ignore[operator]
            stepped = x
        return rms_norm(stepped, self.norm_f)

    def _step_together(self, x: Tensor, states: Sequence[MambaState]) -> Tensor | None:
        """All layers by one call of the CPU's kernels; None where they cannot, or a layer is not as it is made here."""
        layers: list[Any] = list(self.layers)
        if not all(_is_plain(each, MambaLayer) and _is_plain(each.mixer, Mamba) for each in layers):
            return None
        mixers = [layer.mixer for layer in layers]
        if not all(mixer.selects_plainly() for mixer in mixers):
            return None
        return native_stack([layer.norm for layer in layers], mixers, x, states)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a step of the module is that of its class."""
    return type(module) is kind and "step" not in module.__dict__
