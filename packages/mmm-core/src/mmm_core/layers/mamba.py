"""The Mamba layer: projections, a short convolution and the selective scan (arXiv:2312.00752, figure 3).

Parameter names and initialisation are those of mamba_ssm and transformers, so that their checkpoints load as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import nn

from mmm_core.conv import causal_conv1d, causal_conv1d_update
from mmm_core.errors import ShapeError
from mmm_core.layers.native_step import native_step
from mmm_core.layers.selection import normed, step_sizes, transition
from mmm_core.products import apply_linear
from mmm_core.scan import selective_scan, selective_state_update

if TYPE_CHECKING:
    from typing import Literal

    from jaxtyping import Float, Int
    from torch import Tensor

DT_MIN, DT_MAX = 1e-3, 1e-1  # the initial step sizes are log-uniform between them


class MambaState(NamedTuple):
    """What a `Mamba` layer remembers of the tokens behind it; it does not grow with their number."""

    conv: Float[Tensor, "b e t"]  # the last inputs of the convolution, oldest first
    ssm: Float[Tensor, "b e n"]  # the state of the scan


# So that torch.export saves and loads programs that take or return one.
torch.utils._pytree._register_namedtuple(MambaState, serialized_type_name="mmm_core.MambaState")
torch.serialization.add_safe_globals([MambaState])


class Mamba(nn.Module):
    """A Mamba-1 mixer: each token sees itself and the tokens before it, at a cost linear in their number.

    It is one residual branch without its norm: `x + mamba(norm(x))` makes a block of a network. Parameters that no
    optimiser should decay carry `_no_weight_decay = True`, as in mamba_ssm; `copy.deepcopy` drops such marks.

    Args:
        dim: Width of the tokens.
        d_state: State size `n` of each inner channel.
        d_conv: Taps `k` of the convolution.
        expand: The inner width is `e = expand * dim`.
        dt_rank: Rank of the step sizes' projection; None: ceil(dim / 16).
        bias: Whether `in_proj` and `out_proj` have biases.
        conv_bias: Whether the convolution has one.
        selection_norm: The `eps` of RMS norms on the step sizes (before `dt_proj`), B and C; None: there are none.
        selection_norm_weight: Whether these norms have weights: Jamba's do, Falcon-Mamba's do not.
    Raises:
        ValueError: A size is less than 1, or there are weights for norms and no norms.
    Source:
        arXiv:2312.00752 §3.4; as mamba_ssm's `Mamba`. The norms: arXiv:2403.19887 §6.4 (Jamba) and
        arXiv:2410.05355 (Falcon-Mamba), with Jamba's names `dt_layernorm`, `b_layernorm`, `c_layernorm`.
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
        selection_norm: float | None = None,
        selection_norm_weight: bool = False,
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        sizes = {"dim": dim, "d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"Mamba: `{name}` must be at least 1, got {size}.")
        if selection_norm_weight and selection_norm is None:
            raise ValueError("Mamba: `selection_norm_weight` needs norms, got selection_norm=None. Give their eps.")
        inner = expand * dim
        self.dim, self.d_state, self.dt_rank = dim, d_state, dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.selection_norm = selection_norm
        if selection_norm is not None:
            self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
                nn.RMSNorm(size, eps=selection_norm, elementwise_affine=selection_norm_weight)
                for size in (dt_rank, d_state, d_state)
            )
        for parameter in (self.A_log, self.D, self.dt_proj.bias):  # an optimiser that looks leaves these undecayed
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        init_ssm(self.A_log, self.dt_proj)

    @overload
    def forward(
        self,
        x: Float[Tensor, "b l d"],
        state: MambaState | None = ...,
        *,
        return_state: Literal[False] = ...,
        cu_seqlens: Int[Tensor, " bounds"] | None = ...,
    ) -> Float[Tensor, "b l d"]: ...

    @overload
    def forward(
        self,
        x: Float[Tensor, "b l d"],
        state: MambaState | None = ...,
        *,
        return_state: Literal[True],
        cu_seqlens: Int[Tensor, " bounds"] | None = ...,
    ) -> tuple[Float[Tensor, "b l d"], MambaState]: ...

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        state: MambaState | None = None,
        *,
        return_state: bool = False,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> Float[Tensor, "b l d"] | tuple[Float[Tensor, "b l d"], MambaState]:
        """Mix tokens with those before them: a whole text, its continuation, or a single token.

        Args:
            x: Tokens, `(b, l, dim)`.
            state: What the tokens before left behind, from an earlier call; it is read, never written. None: nothing.
            return_state: Return the state behind the last token as well.
            cu_seqlens: Cumulative lengths `(s+1,)` of s texts packed into one row.
        Returns:
            `(b, l, dim)`, and with `return_state` the new `MambaState`.
        Raises:
            ShapeError: `x` is not `(b, l, dim)`, or the state is another layer's.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ShapeError(f"Mamba: `x` must be (b, l, dim) with dim = {self.dim}, got {tuple(x.shape)}.")
        conv_state, ssm_state = (None, None) if state is None else state
        x, z = apply_linear(self.in_proj, x).chunk(2, dim=-1)  # (b, l, e)
        x, conv_state = causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state=conv_state,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        y: Any = selective_scan(
            x,
            **self._selected_by(x),
            D=self.D,
            z=z,
            delta_softplus=True,
            initial_state=ssm_state,
            return_final_state=return_state,  # a kernel that lacks its gradient can run where nobody asks for it
            cu_seqlens=cu_seqlens,
        )
        if not return_state:
            return apply_linear(self.out_proj, y)
        return apply_linear(self.out_proj, y[0]), MambaState(conv_state, y[1])

    @torch.no_grad()
    def step(self, x: Float[Tensor, "b d"], state: MambaState) -> Float[Tensor, "b d"]:
        """Mix one token with those before it and write the state in place: what a loop that decodes calls.

        It gives what `forward` gives for a single token, with no new state in memory and no gradient on record.

        Args:
            x: The token of each row, `(b, dim)`.
            state: What the tokens before left behind, from `forward` or the last step; holds the new token on return.
        Returns:
            `(b, dim)`.
        Raises:
            ShapeError: `x` is not `(b, dim)`, or the state is another layer's.
        Source:
            As mamba_ssm's `Mamba.step`.
        """
        if x.ndim != 2 or x.shape[-1] != self.dim:
            raise ShapeError(f"Mamba.step: `x` must be (b, dim) with dim = {self.dim}, got {tuple(x.shape)}.")
        conv_state, ssm_state = state
        out = native_step(self, x, (conv_state, ssm_state)) if self.selects_plainly() else None
        if out is not None:
            return out
        x, z = apply_linear(self.in_proj, x).chunk(2, dim=-1)  # (b, e)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        y = selective_state_update(ssm_state, x, **self._selected_by(x), D=self.D, z=z, delta_softplus=True)
        return apply_linear(self.out_proj, y)

    def selects_plainly(self) -> bool:
        """Whether each token selects as in mamba_ssm: there are no norms, and no other `_selected_by` in its place."""
        return self.selection_norm is None and getattr(self._selected_by, "__func__", None) is Mamba._selected_by

    def _selected_by(self, x: Tensor) -> dict[str, Any]:
        """What each token selects, and what it does not depend on: arguments of the scan by their names."""
        dt, B, C = apply_linear(self.x_proj, x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if self.selection_norm is not None:
            norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
            dt, B, C = map(normed, norms, (dt, B, C))
        delta, bias = step_sizes(self.dt_proj, dt)
        return {"delta": delta, "A": transition(self.A_log), "B": B, "C": C, "delta_bias": bias}


@torch.no_grad()
def init_ssm(A_log: nn.Parameter, dt_proj: nn.Linear) -> None:
    """Set the parameters of a selective state space to mamba_ssm's start; for layers of one's own around the scan.

    Args:
        A_log: The logarithm of -A, `(e, n)`: each channel gets log 1 to log n.
        dt_proj: From the rank of the step sizes to `e`; after softplus its bias gives steps that are log-uniform from
            0.001 to 0.1.
    Source:
        arXiv:2312.00752 §3.6; as mamba_ssm's `Mamba`.
    """
    inner, d_state = A_log.shape
    A_log.copy_(torch.arange(1, d_state + 1, dtype=torch.float32).log().expand_as(A_log))
    nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
    span = math.log(DT_MAX) - math.log(DT_MIN)
    dt = torch.exp(torch.rand(inner) * span + math.log(DT_MIN))
    dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
