"""What does one token cost in the operations, the call from Python included?

Checks each step against the oracle. What is timed, in float32 and in bfloat16 (the state of the scan and the parameters
stay float32), without gradients, at b 1, e 1536, n 16, 4 taps:

- scan: `selective_state_update` with D, the gate, delta's bias and softplus.
- convolution: `causal_conv1d_update` with its bias and SiLU.
- by the operator: the same in float32 where nothing takes the short path to the kernel.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from timing import measure, print_at_most, print_figure, print_timings, ratio, setting

from mmm_core import causal_conv1d_update, selective_state_update
from mmm_core.testing import OUTPUT_TOLERANCE, ConvCase, ScanCase, conv_oracle, rms_error_ratio, scan_oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

E, N, TAPS = 1536, 16, 4
PARAMETERS = ("A", "D", "delta_bias", "weight", "bias")
ROUNDS, CALLS = 200, 20  # short turns: a busy machine is asked between its interruptions
LIMIT = 25e-6  # seconds of one step of the scan


@torch.no_grad()
def main() -> None:
    scan, conv = ScanCase(b=1, l=1, e=E, n=N).inputs(), ConvCase(b=1, l=1, e=E, k=TAPS).inputs()
    check(scan, conv)
    runs: dict[str, Callable[[], object]] = {}
    for suffix, dtype in (("", torch.float32), (", bfloat16", torch.bfloat16)):
        runs["scan" + suffix] = scan_step(converted(scan, dtype))
        runs["convolution" + suffix] = conv_step(converted(conv, dtype))
    times = measure(runs, ROUNDS, CALLS)
    with patch("mmm_core.scan.eager", lambda _: False), patch("mmm_core.conv.eager", lambda _: False):
        looked_on = {f"{name} by the operator": runs[name] for name in ("scan", "convolution")}
        times |= measure(looked_on, ROUNDS, CALLS)
    print_timings(f"One token: b 1, e {E}, n {N}, {TAPS} taps ({setting()})", times)
    print_at_most("scan, microseconds", times["scan"].median * 1e6, LIMIT * 1e6)
    for name in ("scan", "convolution"):
        print_figure(f"{name}: by the operator / short path", ratio(times, f"{name} by the operator", name))
        print_figure(f"{name}: bfloat16 / float32", ratio(times, f"{name}, bfloat16", name))


def converted(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """One token of a call, in another dtype; its state and the parameters stay as they are."""
    token = {name: x.detach() if name in (*PARAMETERS, "initial_state") else x[:, 0] for name, x in inputs.items()}
    return {name: x if name in (*PARAMETERS, "initial_state") else x.to(dtype) for name, x in token.items()}


def scan_step(token: dict[str, Tensor]) -> Callable[[], Tensor]:
    others = {name: x for name, x in token.items() if name != "initial_state"}
    return partial(selective_state_update, token["initial_state"].clone(), **others, delta_softplus=True)


def conv_step(token: dict[str, Tensor]) -> Callable[[], Tensor]:
    others = {name: x for name, x in token.items() if name not in ("x", "initial_state")}
    return partial(causal_conv1d_update, token["x"], token["initial_state"].clone(), **others, activation="silu")


def check(scan: dict[str, Tensor], conv: dict[str, Tensor]) -> None:
    """Raise unless both steps give what the oracle gives."""
    for step, oracle, inputs, options in (
        (scan_step, scan_oracle, scan, {"delta_softplus": True}),
        (conv_step, conv_oracle, conv, {"activation": "silu"}),
    ):
        run = step(converted(inputs, torch.float32))
        state = run.args[0 if step is scan_step else 1]  # type: ignore[attr-defined]
        expected = oracle(**{name: x.detach() for name, x in inputs.items()}, **options, return_final_state=True)
        for x, y in zip((run()[:, None], state), expected, strict=True):
            error = rms_error_ratio(x, y)
            assert error <= OUTPUT_TOLERANCE[torch.float32], f"RMS error ratio {error:.2e} to the oracle"


if __name__ == "__main__":
    main()
