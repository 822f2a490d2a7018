"""How near are the Triton kernels to what a GPU's memory allows, and how do they stand beside mamba_ssm's?

    PYTHONPATH=packages/mmm-core/src python benchmarks/gpu.py --mamba CLONE --out FOLDER

It needs a GPU, torch and triton, and nothing else. It checks the kernels against the oracle, and what is timed against
the `chunked` backend in float64. Then it times, in bfloat16 and float32, with delta's bias, softplus, D and the gate:

- scan, convolution, layer: forward, and forward + backward, of `selective_scan`, `causal_conv1d` with SiLU, and a
  whole `Mamba` layer of that inner width.
- step: `selective_state_update` on a batch of b.
- mamba_ssm: the functions `fwd` and `bwd` of its extension on tensors in the layout it likes, without the Python around
  them. It is installed, or built from a clone of its repository (`--mamba`); with neither the ratios are left out.

Times are medians by CUDA events. Before each call a large tensor is written a few times: caches are then cold, and the
host is ahead of the GPU, so that Python's time does not count. A share is the time that a copy of as many bytes takes,
over that of the call; the bytes are those of each input read once and each output written once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from mamba_ssm_extension import extension
from timing import Timing, print_at_least, print_at_most, timing

from mmm_core import causal_conv1d, selective_scan, selective_state_update
from mmm_core.layers import Mamba
from mmm_core.testing import Case, ConvCase, ScanCase, assert_correct, rms_error_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BASE, LONG, SHORT, LONGEST = (8, 2048, 2048, 16), (1, 16384, 4096, 16), (64, 196, 768, 16), (1, 131072, 2048, 16)
TAPS = 4
ROUNDS = 15
FLUSHED = 2**32  # bytes written before each call, `FLUSHES` times
FLUSHES = 8  # which take a GPU several milliseconds
PARAMETERS = ("A", "D", "delta_bias", "weight", "bias")
PEER_TOLERANCE = 2e-2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


class Record(NamedTuple):
    """What was timed; the share is None where a call is not bound to its bytes."""

    shape: tuple[int, ...]
    dtype: str
    what: str
    seconds: float
    spread: float
    share: float | None


class Gpu:
    """The clock, and the speed of a copy."""

    def __init__(self) -> None:
        self._flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        other = torch.empty_like(self._flushed)
        self.bandwidth = 2 * FLUSHED / self.time(lambda: other.copy_(self._flushed)).median  # bytes a second

    def time(self, run: Callable[[], object]) -> Timing:
        """The GPU's time for a call."""
        seconds = []
        for _ in range(ROUNDS + 2):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(FLUSHES):
                self._flushed.zero_()
            start.record()
            run()
            stop.record()
            stop.synchronize()
            seconds.append(start.elapsed_time(stop) / 1e3)
        return timing(seconds[2:])


def main() -> None:
    options = parse()
    check_against_the_oracle()
    peer = extension(options.mamba, Path(tempfile.gettempdir()) / "mamba_ssm_extension")
    gpu = Gpu()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}; a copy: {gpu.bandwidth / 1e12:.2f} TB/s")
    if peer is None:
        print("mamba_ssm's extension is not installed, and --mamba gives no clone of its repository: no ratios.")
    options.out.mkdir(parents=True, exist_ok=True)
    setting = {"device": name, "torch": torch.__version__, "triton": triton.__version__, "copy": gpu.bandwidth}
    records: list[Record] = []
    for shape in (BASE, LONG, SHORT, LONGEST):
        for dtype in (torch.bfloat16, torch.float32):
            times = time_all(gpu, shape, dtype, peer)
            records += report(shape, dtype, times, gpu.bandwidth)
            results = setting | {"records": [record._asdict() for record in records]}
            (options.out / "gpu.json").write_text(json.dumps(results, indent=1))  # each time: the next may fail
    plot(records, options.out / "gpu.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the Triton kernels on a GPU.")
    parser.add_argument("--mamba", type=Path, help="a clone of mamba_ssm's repository, to build its extension from")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for gpu.json and gpu.png")
    return parser.parse_args()


def check_against_the_oracle() -> None:
    """Raise unless the kernels on the GPU give what the oracle gives."""
    cases: tuple[tuple[Case, Callable[..., Any]], ...] = (
        (ScanCase(l=65), selective_scan),
        (ScanCase(lengths=(3, 0, 40), groups=2, reverse=True), selective_scan),
        (ConvCase(l=65), causal_conv1d),
        (ConvCase(lengths=(3, 0, 40), reverse=True), causal_conv1d),
    )
    for case, operation in cases:
        assert_correct(case, partial(on_gpu, operation), torch.float32)


def on_gpu(operation: Callable[..., Any], **arguments: Any) -> tuple[Tensor, Tensor]:
    moved = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    out, state = operation(**moved, backend="triton")
    return out.cpu(), state.cpu()


def time_all(gpu: Gpu, shape: tuple[int, ...], dtype: torch.dtype, peer: Any) -> dict[str, Timing]:
    b, l, e, n = shape
    torch.manual_seed(0)
    grad = torch.randn(b, l, e, device="cuda", dtype=dtype)
    times: dict[str, Timing] = {}
    scan = moved(ScanCase(b=b, l=l, e=e, n=n, initial_state=False), dtype)
    conv = moved(ConvCase(b=b, l=l, e=e, k=TAPS, initial_state=False), dtype)
    for name, operation, inputs in (
        ("scan", partial(selective_scan, delta_softplus=True), scan),
        ("convolution", partial(causal_conv1d, activation="silu"), conv),
    ):
        check(operation, inputs, grad)
        times[f"{name}, forward"] = gpu.time(partial(forward, operation, inputs))
        times[f"{name}, both"] = gpu.time(partial(forward_and_backward, operation, inputs, grad))
    if peer is not None:
        times |= time_peer(gpu, peer, scan, grad)
    token = {name: x if name in PARAMETERS else x[:, 0].contiguous() for name, x in scan.items()}
    state = torch.zeros(b, e, n, device="cuda")
    times["step"] = gpu.time(partial(selective_state_update, state, **token, delta_softplus=True))
    del scan, conv, grad
    layer = Mamba(e // 2, d_state=n, d_conv=TAPS).to("cuda", dtype)
    x = torch.randn(b, l, e // 2, device="cuda", dtype=dtype, requires_grad=True)
    leaves = {"x": x} | dict(layer.named_parameters())
    times["layer, forward"] = gpu.time(lambda: forward(lambda **_: layer(x), {}))
    grad = torch.randn_like(x)
    times["layer, both"] = gpu.time(lambda: forward_and_backward(lambda **_: layer(x), leaves, grad))
    return times


def moved(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """A case's inputs on the GPU; parameters in float32."""
    return {
        name: torch.randn(shape, device="cuda").to(torch.float32 if name in PARAMETERS else dtype)
        if name != "A"
        else -torch.randn(shape, device="cuda").exp()
        for name, shape in case.shapes().items()
    }


@torch.no_grad()
def forward(operation: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Tensor:
    return operation(**inputs)


def forward_and_backward(
    operation: Callable[..., Tensor], inputs: dict[str, Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    for x in inputs.values():
        x.requires_grad_()
    out = operation(**inputs)
    return (out, *torch.autograd.grad(out, list(inputs.values()), grad))


def check(operation: Callable[..., Tensor], inputs: dict[str, Tensor], grad: Tensor) -> None:
    """Raise unless output and gradients on a part of what is timed agree with float64."""
    b, l, e = grad.shape
    rows, most = min(b, 2), min(l, 4096)
    part = {name: x if name in PARAMETERS else x[:rows, :most] for name, x in inputs.items()}
    wide = {name: x.double() for name, x in part.items()}
    actual = forward_and_backward(partial(operation, backend="triton"), detached(part), grad[:rows, :most])
    exact = forward_and_backward(partial(operation, backend="chunked"), wide, grad[:rows, :most].double())
    for name, x, y in zip(("output", *part), actual, exact, strict=True):
        error = rms_error_ratio(x, y)
        assert error <= TOLERANCE[grad.dtype], f"{(b, l, e)}: {name}: RMS error ratio {error:.2e}"


def detached(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in inputs.items()}


def time_peer(gpu: Gpu, peer: Any, scan: dict[str, Tensor], grad: Tensor) -> dict[str, Timing]:
    """The extension's forward, and its forward + backward, after a check of its results."""
    tensors = detached(scan)
    u, delta, z, dout = (
        (tensors | {"grad": grad})[name].transpose(1, 2).contiguous() for name in ("u", "delta", "z", "grad")
    )
    B, C = (tensors[name].transpose(1, 2).unsqueeze(1).contiguous() for name in ("B", "C"))
    arguments = (u, delta, tensors["A"], B, C, tensors["D"], z, tensors["delta_bias"])

    def both() -> object:
        out, states, gated = peer.fwd(*arguments, True)
        return gated, peer.bwd(*arguments, dout, states, out, None, True, False)

    gated, gradients = both()
    expected = forward_and_backward(partial(selective_scan, delta_softplus=True), tensors, grad)
    for x, y in ((gated, expected[0]), (gradients[0], expected[1])):
        error = rms_error_ratio(x.transpose(1, 2), y)
        if error > PEER_TOLERANCE:
            print(f"{tuple(grad.shape)}: mamba_ssm's result is another (RMS error ratio {error:.0e}): no ratio.")
            return {}
    return {
        "mamba_ssm, forward": gpu.time(lambda: peer.fwd(*arguments, True)),
        "mamba_ssm, both": gpu.time(both),
    }


def bytes_of(what: str, shape: tuple[int, ...], size: int) -> int | None:
    """The bytes that a call must read and write; None: more than they count."""
    b, l, e, n = shape
    wide, narrow = b * l * e * size, b * l * n * size
    return {
        "scan, forward": 4 * wide + 2 * narrow,  # u, delta, z, out; B, C
        "scan, both": 11 * wide + 6 * narrow,  # and again with the gradients of all
        "convolution, forward": 2 * wide,
        "convolution, both": 5 * wide,
        "step": 2 * b * e * n * 4 + e * n * 4 + 4 * b * e * size,  # the state both ways, A
    }.get(what)


def report(shape: tuple[int, ...], dtype: torch.dtype, times: dict[str, Timing], bandwidth: float) -> list[Record]:
    """Print what was timed, and the figures beside what is asked of them."""
    kind = str(dtype).removeprefix("torch.")
    print(f"\n{shape}, {kind}\n    {'':<32}{'median':>12}{'spread':>10}{'share of a copy':>18}")
    records = []
    for what, (seconds, spread) in times.items():
        moved_bytes = bytes_of(what.replace("mamba_ssm", "scan"), shape, dtype.itemsize)
        share = None if moved_bytes is None else moved_bytes / bandwidth / seconds
        print(f"    {what:<32}{seconds * 1e6:>9.1f} us{spread:>9.0%}{'' if share is None else f'{share:>17.0%}'}")
        records.append(Record(shape, kind, what, seconds, spread, share))
    print_goals(shape, dtype, {record.what: record for record in records})
    return records


def print_goals(shape: tuple[int, ...], dtype: torch.dtype, records: dict[str, Record]) -> None:
    scan, both = records["scan, forward"], records["scan, both"]
    print_at_most("scan: backward / forward", both.seconds / scan.seconds - 1, 3.0)
    if shape == BASE and dtype == torch.bfloat16:
        print_at_least("scan: share of a copy", scan.share or 0.0, 0.7)
        print_at_least("convolution: share of a copy", records["convolution, forward"].share or 0.0, 0.8)
    if "mamba_ssm, forward" in records:
        limit = 1.3 if shape[0] == 1 else 1.0
        for way, ours in (("forward", scan), ("both", both)):
            print_at_least(f"scan, {way}: mamba_ssm / ours", records[f"mamba_ssm, {way}"].seconds / ours.seconds, limit)


def plot(records: list[Record], path: Path) -> None:
    """Microseconds a million (b, l, e) elements, a panel a dtype; where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nmatplotlib is not installed: no plot.")
        return
    kinds = ("bfloat16", "float32")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        shapes = list(dict.fromkeys(record.shape for record in records))
        names = [name for name in dict.fromkeys(record.what for record in records) if name != "step"]
        for i, name in enumerate(names):
            chosen = [record for record in records if record.dtype == kind and record.what == name]
            heights = [record.seconds * 1e12 / _elements(record) for record in chosen]
            axis.bar([j + i / (len(names) + 1) for j in range(len(chosen))], heights, 1 / (len(names) + 1), label=name)
        axis.set(title=kind, yscale="log")
        axis.set_xticks([j + 0.4 for j in range(len(shapes))], [str(shape) for shape in shapes], fontsize=7)
    axes[0].set_ylabel("microseconds a million elements (b, l, e)")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)
    print(f"\n{path}")


def _elements(record: Record) -> int:
    b, l, e, _ = record.shape
    return b * l * e


if __name__ == "__main__":
    main()
