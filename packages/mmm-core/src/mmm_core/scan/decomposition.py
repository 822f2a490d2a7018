"""The selective scan in operators that every runtime has, for a program that leaves torch or goes without mmm-core.

Nothing here asks for a size, or reads a boundary: what is traced holds for every length. The recurrence is torch's
own `scan`, which becomes a loop in whatever reads the program.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm_core.scan.problem import Problem
from mmm_core.sequences import sequence_of


def decomposition(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and final state, and no checkpoints: the gradient is that of the operators."""
    p = Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse)
    _, l, _, g, _ = p.sizes
    step, u = p.step_size(delta), u.to(p.dtype)
    inputs = [step.unflatten(2, (g, -1)), (step * u).unflatten(2, (g, -1)), B.to(p.dtype), C.to(p.dtype)]
    inputs = [x.transpose(0, 1) for x in inputs]  # time first
    constants = [A.to(p.dtype).unflatten(0, (g, -1))]  # (g, f, n)
    if cu_seqlens is not None:
        inputs.append(sequence_of(cu_seqlens, l))
        constants.append(torch.arange(cu_seqlens.shape[0] - 1, device=u.device))
    inputs = [x.flip(0) if reverse else x.contiguous() for x in inputs]
    states = p.first_states().unflatten(1, (g, -1))  # (b or k, g, f, n)
    if torch.onnx.is_in_onnx_export():  # its passes run the program, and torch's `scan` fails there with a gradient on
        states, inputs, constants = states.detach(), [x.detach() for x in inputs], [x.detach() for x in constants]
    recur = _recur if cu_seqlens is None else _recur_packed
    states, y = torch.ops.higher_order.scan(recur, [states], inputs, tuple(constants))
    y = (y.flip(0) if reverse else y).transpose(0, 1).flatten(2)  # (b, l, e)
    if D is not None:
        y = y + u * D.to(p.dtype)
    if z is not None:
        y = y * F.silu(z.to(p.dtype))
    return y.to(p.u.dtype), states.flatten(1, 2), states.new_empty(0)


def _recur(h: Tensor, step: Tensor, x: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """One position: the state after it, (b, g, f, n), and its output, (b, g, f)."""
    h = torch.exp(step[..., None] * A) * h + x[..., None] * B[..., None, :]
    return h, (h @ C[..., None]).squeeze(-1)


def _recur_packed(
    states: Tensor, step: Tensor, x: Tensor, B: Tensor, C: Tensor, k: Tensor, A: Tensor, every: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of sequence k, and the states of all sequences, (k, g, f, n)."""
    h, y = _recur(states.index_select(0, k[None]), step, x, B, C, A)
    return torch.where((every == k)[:, None, None, None], h, states), y
