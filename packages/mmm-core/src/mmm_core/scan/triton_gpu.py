"""The selective scan on a GPU: how its kernels are called, and in which configuration.

The kernels are `triton_kernels.py`; README.md has the maths. Importing this file imports triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mmm_core.arithmetic import arithmetic_dtype
from mmm_core.scan import triton_kernels as kernels
from mmm_core.scan.problem import Gradients, Problem
from mmm_core.sequences import whole_bounds

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Config(NamedTuple):
    """How a pass is laid out; measured on an H200."""

    warps: int  # of a program, at most: state indices at once
    warps_in_parts: int  # the same where the sequences are cut into parts
    full: int  # warps that fill a GPU: where a call has fewer, it is cut into parts that run at once


STEPS: int = kernels.STEPS.value
CHANNELS: int = kernels.CHANNELS.value
FORWARD = Config(warps=4, warps_in_parts=2, full=2048)
FORWARD_REGISTERS = 128  # of a thread, so that 16 warps share a multiprocessor
BACKWARD = Config(warps=2, warps_in_parts=2, full=1024)
LEAST_PART = 4  # chunks of a part: with fewer, the launches that parts need take longer than what they save
PROJECTION_BLOCK = 16  # state indices that a program of `gather_projections` takes
JOIN_BLOCK = 256  # states that a program of `join_parts` takes


def checkpoint_shape(p: Problem) -> tuple[int, ...]:
    """The state before every `STEPS` positions of each sequence, (n, e), one behind the other."""
    b, _, e, _, n = p.sizes
    return (b, _slots(p) * e * n)


def forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, l, e), the final state (b or k, e, n), and the checkpoints where they are asked for."""
    out = torch.empty_like(p.u, memory_format=torch.contiguous_format)
    state = _carried(p, p.initial_state)
    # Between packed sequences there are slots that no chunk fills.
    checkpoints = (state.new_empty if p.cu_seqlens is None else state.new_zeros)(checkpoint_shape(p) if save else (0,))
    if p.u.numel():
        with torch.cuda.device_of(p.u):
            call = _Call(p, FORWARD)
            limits = {} if torch.version.hip else {"maxnreg": FORWARD_REGISTERS}  # Triton refuses that one for ROCm

            def scan(states: Tensor, decay: Tensor | None) -> None:
                kernels.scan_forward[call.grid](
                    **call.inputs,
                    state=states,
                    decay=decay,
                    out=out,
                    checkpoints=checkpoints if save and decay is None else None,
                    SUMMARY=decay is not None,
                    **call.sizes,
                    **limits,
                )

            call.over_parts(scan, state)
    return out, state.transpose(1, 2).contiguous(), checkpoints


def backward(p: Problem, checkpoints: Tensor, grad_out: Tensor, grad_final_state: Tensor | None) -> Gradients:
    """The gradients of every input; those of A, D and the bias are summed over sequences and parts in their order."""
    _, l, e, groups, n = p.sizes
    grads = Gradients(*(p.room(x) for x in p.floating))
    grad_state = _carried(p, grad_final_state)
    if p.u.numel():
        with torch.cuda.device_of(p.u):
            call = _Call(p, BACKWARD)
            programs = p.state_shape[0] * call.parts
            grad_A = p.u.new_zeros((programs, n, e), dtype=p.dtype)
            grad_D, grad_bias = (p.u.new_empty((programs, e), dtype=p.dtype) for _ in range(2))
            grad_BC = p.u.new_empty((call.blocks, call.slots, groups, n, 2, STEPS), dtype=p.dtype)

            def scan(states: Tensor, decay: Tensor | None) -> None:
                kernels.scan_backward[call.grid](
                    **call.inputs,
                    checkpoints=checkpoints,
                    **_strided("grad_out", grad_out, "ble"),
                    grad_state=states,
                    decay=decay,
                    grad_u=grads.u,
                    grad_delta=grads.delta,
                    grad_z=None if p.z is None else grads.z,
                    grad_A=grad_A,
                    grad_BC=grad_BC,
                    grad_D=grad_D,
                    grad_bias=grad_bias,
                    slots=call.slots,
                    SUMMARY=decay is not None,
                    **call.sizes,
                )

            call.over_parts(scan, grad_state, backward=True)
            kernels.scatter_projections[(call.slots * groups * -(-n // PROJECTION_BLOCK),)](
                grad_BC,
                grads.B,
                grads.C,
                call.bounds,
                p.state_shape[0],
                call.slots,
                l,
                call.blocks,
                groups,
                n,
                REVERSE=p.reverse,
                BLOCK=PROJECTION_BLOCK,
                enable_fp_fusion=True,
            )
        grads = grads._replace(
            A=grad_A.sum(0).t().contiguous(),
            D=grads.D if p.D is None else grad_D.sum(0),
            delta_bias=grads.delta_bias if p.delta_bias is None else grad_bias.sum(0),
        )
    else:
        grads = Gradients(*(grad.zero_() for grad in grads))
    return grads if p.initial_state is None else grads._replace(initial_state=grad_state.transpose(1, 2).contiguous())


class _Call:
    """What the forward and the backward have in common: the grid, and most of the kernels' arguments."""

    def __init__(self, p: Problem, config: Config) -> None:
        b, l, e, groups, n = p.sizes
        self.bounds = whole_bounds("selective_scan", l, p.cu_seqlens, p.u.device)
        self.slots = b * _slots(p)
        self.blocks = -(-(e // groups) // CHANNELS)  # programs that share the channels of a group
        chunks, programs = -(-l // STEPS), p.state_shape[0] * groups * self.blocks
        round_of = n & -n  # the largest power of two that divides n: a round has no states that are none
        warps, most_parts = min(config.warps, round_of), 1
        if chunks > LEAST_PART and programs * warps < config.full:
            warps = min(config.warps_in_parts, round_of)
            most_parts = 2 * config.full // (programs * warps)
        part_chunks = max(LEAST_PART, -(-chunks // most_parts))
        self.parts = -(-chunks // part_chunks)
        self.grid = (programs * self.parts,)
        self.inputs = _strided("u", p.u, "ble") | _strided("delta", p.delta, "ble") | _strided("z", p.z, "ble")
        self.inputs |= _strided("D", p.D, "e") | _strided("bias", p.delta_bias, "e")
        self.inputs["A"] = p.A.t().to(p.dtype, memory_format=torch.contiguous_format, copy=True)
        self.inputs["BC"] = self._projections(p)
        self.sizes = {
            "bounds": self.bounds,
            "length": l,
            "channels": e // groups,
            "groups": groups,
            "n": n,
            "parts": self.parts,
            "part_chunks": part_chunks,
            "REVERSE": p.reverse,
            "SOFTPLUS": p.delta_softplus,
            "WARPS": warps,
            "num_warps": max(1, warps // 2) if torch.version.hip else warps,  # AMD's have 64 threads
            "enable_fp_fusion": True,
        }

    def _projections(self, p: Problem) -> Tensor:
        """B and C as the kernels read them."""
        _, l, _, groups, n = p.sizes
        BC = p.u.new_empty((self.slots, groups, n, 2, STEPS), dtype=p.dtype)
        kernels.gather_projections[(self.slots * groups * -(-n // PROJECTION_BLOCK),)](
            **_strided("B", p.B, "blgn"),
            **_strided("C", p.C, "blgn"),
            BC=BC,
            bounds=self.bounds,
            sequences=p.state_shape[0],
            length=l,
            groups=groups,
            n=n,
            REVERSE=p.reverse,
            BLOCK=PROJECTION_BLOCK,
            enable_fp_fusion=True,
        )
        return BC

    def over_parts(self, scan: Callable[[Tensor, Tensor | None], None], state: Tensor, backward: bool = False) -> None:
        """Run `scan` on all parts of the sequences at once; `state` goes from that before to that behind them all.

        Args:
            scan: Takes the states that enter the parts, and replaces them by those that leave. With a second tensor it
                does no more than that, and writes there what each part multiplies a state by; it leaves out the part
                that a state reaches last.
            state: A state for each of `k` sequences, (k, n, e).
            backward: A state enters at the last part, not the first.
        """
        if self.parts == 1:
            scan(state, None)
            return
        k, size = state.shape[0], state[0].numel()
        through = state.new_zeros((k, self.parts, *state.shape[1:]))
        decay = torch.empty_like(through)
        scan(through, decay)
        kernels.join_parts[(k * -(-size // JOIN_BLOCK),)](
            state, through, decay, size, self.parts, BACKWARD=backward, BLOCK=JOIN_BLOCK, enable_fp_fusion=True
        )
        scan(through, None)
        state.copy_(through[:, 0 if backward else -1])


def update(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The output of one position, (b, e); `state` goes from that before it to that after it."""
    (b, e), n = u.shape, A.shape[1]
    if B.ndim == 2:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    if not u.numel():
        return out
    states = min(128, 1 << (n - 1).bit_length())
    channels = max(1, 512 // states)
    with torch.cuda.device_of(u):
        kernels.scan_update[(b * -(-e // channels),)](
            **_strided("state", state, "ben"),
            **_strided("u", u, "be"),
            **_strided("delta", delta, "be"),
            **_strided("A", A, "en"),
            **_strided("B", B, "bgn"),
            **_strided("C", C, "bgn"),
            **_strided("D", D, "e"),
            **_strided("z", z, "be"),
            **_strided("bias", delta_bias, "e"),
            out=out,
            e=e,
            channels=e // B.shape[1],
            n=n,
            WIDE=arithmetic_dtype((u, delta, A, B, C, D, z, delta_bias, state)) == torch.float64,
            SOFTPLUS=delta_softplus,
            BLOCK=channels,
            STATES=states,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out


def _carried(p: Problem, given: Tensor | None) -> Tensor:
    """A fresh copy of states (b or k, e, n), or of their gradients, as the kernels carry them, (b or k, n, e)."""
    k, e, n = p.state_shape
    carried = p.u.new_zeros((k, n, e), dtype=p.dtype)
    return carried if given is None else carried.copy_(given.transpose(1, 2))


def _slots(p: Problem) -> int:
    """Room for the chunks of a row of the batch, where each packed sequence begins one of its own."""
    return (p.sizes[1] + STEPS - 1) // STEPS + (0 if p.cu_seqlens is None else p.cu_seqlens.shape[0])


def _strided(name: str, x: Tensor | None, axes: str) -> dict[str, Any]:
    """A tensor and its strides as arguments of a kernel."""
    strides = x.stride() if x is not None else (0,) * len(axes)
    return {name: x} | {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
