"""The Triton kernels against the oracle: on the GPU, or by Triton's interpreter where `TRITON_INTERPRET=1` asks for it.

`nox -s triton` runs them so, on any machine; `nox -s gpu` runs them on the GPU.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mmm_core import backends, causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mmm_core.conv import triton_gpu as conv_kernels
from mmm_core.layers import Mamba
from mmm_core.scan import operator as scan_operator
from mmm_core.scan import triton_gpu as scan_kernels
from mmm_core.testing import (
    CONV_CASES,
    OUTPUT_TOLERANCE,
    SCAN_CASES,
    ConvCase,
    ScanCase,
    assert_correct,
    both_passes,
    rms_error_ratio,
    ulps_apart,
)

DEVICE = "cpu" if backends.INTERPRETED else "cuda"
ALONG_L = ("u", "delta", "B", "C", "z", "x")
scan, conv = (partial(operation, backend="triton") for operation in (selective_scan, causal_conv1d))
SCAN_SHORT = {name: case for name, case in SCAN_CASES.items() if name != "many states"} | {
    "many states": ScanCase(b=1, l=3, e=2, n=9)
}
both = pytest.mark.parametrize(
    ("operation", "case"), [(scan, ScanCase(l=9, e=3, n=2)), (conv, ConvCase(l=9))], ids=["scan", "conv"]
)


def here(arguments):
    """Arguments with every tensor on the device of the tests."""
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


def call(operation, case, inputs, **changes):
    """Both outputs of a case's call on other inputs."""
    return operation(**here(inputs | case.options() | {"return_final_state": True} | changes))


def on_device(operation):
    """An operation for `assert_correct`, whose tensors are on the CPU."""

    def run(**arguments):
        return tuple(y.cpu() for y in operation(**here(arguments)))

    return run


def plain(case, dtype=torch.float32):
    return {name: x.detach() for name, x in case.inputs(dtype).items()}


def fill_a_gpu(warps, monkeypatch):
    """Have so many warps fill a GPU: with fewer, sequences are cut into parts."""
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(scan_kernels, name, getattr(scan_kernels, name)._replace(full=warps))
    monkeypatch.setattr(scan_kernels, "LEAST_PART", 1)


@pytest.mark.parametrize("case", SCAN_SHORT.values(), ids=SCAN_SHORT.keys())
def test_the_scan_matches_the_oracle(case):
    assert_correct(case, on_device(scan), torch.float32)


@pytest.mark.parametrize("case", CONV_CASES.values(), ids=CONV_CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_convolution_matches_the_oracle(case, dtype):
    assert_correct(case, on_device(conv), dtype)


@both
def test_float64_is_exact(operation, case):
    assert_correct(case, on_device(operation), torch.float64)


@pytest.mark.parametrize("n", [3, 4, 6])  # of which a round takes one, four, or two in parts, and two
@pytest.mark.parametrize("warps", [1, 1 << 20], ids=["whole", "in parts"])
@pytest.mark.parametrize("packed", [False, True])
def test_each_configuration_of_the_scan_is_right_alone(n, warps, packed, monkeypatch):
    fill_a_gpu(warps, monkeypatch)
    lengths = (3, 0, 34) if packed else None
    case = ScanCase(b=1 if packed else 2, l=37, lengths=lengths, e=6, n=n, groups=2, reverse=packed)
    assert_correct(case, on_device(scan), torch.float32)


def test_a_layer_with_gradients_exports_with_any_batch_and_length():
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}  # raises where a size is fixed
    torch.export.export(Mamba(8).to(DEVICE), (torch.randn(2, 7, 8, device=DEVICE),), dynamic_shapes=dynamic)


@pytest.mark.parametrize("warps", [1, 9], ids=["whole", "two chunks a part"])
def test_chunks_rounds_and_blocks_follow_each_other(warps, monkeypatch):
    fill_a_gpu(warps, monkeypatch)
    assert_correct(ScanCase(b=1, l=50, e=66, n=18, groups=2), on_device(scan), torch.float32)


def test_an_infinity_stays_one():
    case = ScanCase(b=1, l=16, e=1, n=3, D=False)
    x = plain(case)
    x |= {name: x[name].abs() for name in ("B", "C")}  # a sum of infinities of both signs is none
    x["u"][0, 3] = torch.inf
    out, exact = (call(partial(selective_scan, backend=backend), case, x)[0] for backend in ("triton", "chunked"))
    assert exact.isinf().any()
    torch.testing.assert_close(out, exact)


@pytest.mark.parametrize("case", [ScanCase(l=3, n=1), ScanCase(l=3, e=1, n=2), ScanCase(lengths=(3, 0, 4), n=3)])
def test_opcheck(case):
    """The initial state is not written, and nothing is left unwritten."""
    x = here(plain(case) | case.options())
    tensors = [x[name] for name in ("u", "delta", "A")] + [x[name].unsqueeze(2) for name in ("B", "C")]
    tensors += [x.get(name) for name in ("D", "z", "delta_bias", "initial_state", "cu_seqlens")]
    torch.library.opcheck(
        torch.ops.mmm_core.selective_scan, (*tensors, case.delta_softplus, case.reverse, True, "triton")
    )


def test_strides_of_a_window_beyond_32_bits():
    x = plain(ConvCase(b=1, l=1, e=2, k=4))
    x = here({name: y[:, 0] if name == "x" else y for name, y in x.items()})
    wide = torch.empty(1, 3, 2**30, dtype=torch.bfloat16, device=DEVICE)[:, :, :2].transpose(1, 2)
    wide.copy_(x["initial_state"])
    narrow = wide.contiguous()
    outs = [causal_conv1d_update(x["x"], state, x["weight"], x["bias"]) for state in (wide, narrow)]
    assert torch.equal(*outs)
    assert torch.equal(wide, narrow)


@pytest.mark.parametrize(("name", "axis"), [("A", 1), ("B", 2), ("u", 1), ("delta", 1), ("C", 1)])
def test_strides_beyond_32_bits(name, axis):
    case = ScanCase(b=1, l=3, e=2, n=3)
    inputs = plain(case)
    x = inputs[name].movedim(axis, 0)
    wide = torch.empty(3, 2**30, dtype=torch.bfloat16, device=DEVICE)[:, : x[0].numel()].unflatten(1, x.shape[1:])
    wide = wide.copy_(x).movedim(0, axis)
    wide, narrow = (inputs | {name: x} for x in (wide, wide.contiguous()))
    assert all(torch.equal(*pair) for pair in zip(call(scan, case, wide), call(scan, case, narrow), strict=True))


@pytest.mark.parametrize(("elements", "channels"), [(8, 4), (32, 4), (32, 1)])
@pytest.mark.parametrize("case", [ConvCase(l=21), ConvCase(lengths=(3, 0, 18), k=9, reverse=True)])
def test_each_tile_of_the_convolution_is_right_alone(elements, channels, case, monkeypatch):
    for way in ("FORWARD", "BACKWARD"):
        config = getattr(conv_kernels, way)._replace(elements=elements, channels=channels)
        monkeypatch.setattr(conv_kernels, way, config)
    assert_correct(case, on_device(conv), torch.float32)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_the_rounded_float32_result(operation, case, dtype):
    inputs = plain(case, dtype)
    half, wide = (
        both_passes(case, on_device(operation), {name: x.to(kind) for name, x in inputs.items()})
        for kind in (dtype, torch.float32)
    )
    for name in half:
        assert half[name].dtype == torch.float32 or ulps_apart(half[name], wide[name].to(half[name].dtype)) <= 1, name


@both
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_parts_give_the_whole(operation, case, cut):
    inputs = plain(case)
    whole, last = call(operation, case, inputs)
    state, parts = inputs["initial_state"], []
    for span in (slice(0, cut), slice(cut, None)):
        part = {name: x[:, span] if name in ALONG_L else x for name, x in inputs.items()}
        out, state = call(operation, case, part | {"initial_state": state})
        parts.append(out)
    assert rms_error_ratio(torch.cat(parts, dim=1), whole) <= OUTPUT_TOLERANCE[torch.float32]
    assert rms_error_ratio(state, last) <= OUTPUT_TOLERANCE[torch.float32]


def test_steps_give_the_scan(monkeypatch):
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    case = ScanCase(l=5, groups=2)
    inputs = here(plain(case))
    whole, last = call(scan, case, inputs)
    state = inputs.pop("initial_state").clone()
    for t in range(5):
        token = {name: x[:, t] if name in ALONG_L else x for name, x in inputs.items()}
        y = selective_state_update(state, **token, delta_softplus=True)
        assert rms_error_ratio(y, whole[:, t]) <= OUTPUT_TOLERANCE[torch.float32]
    assert rms_error_ratio(state, last) <= OUTPUT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("k", [1, 2, 4, 9])
@pytest.mark.parametrize("channels_inside", [False, True])
def test_steps_give_the_convolution(k, channels_inside, monkeypatch):
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    case = ConvCase(l=5, k=k, e=300)
    inputs = here(plain(case))
    whole, last = call(conv, case, inputs)
    state = inputs["initial_state"].clone()
    if channels_inside:
        state = state.transpose(1, 2).contiguous().transpose(1, 2)
    for t in range(5):
        y = causal_conv1d_update(inputs["x"][:, t], state, inputs["weight"], inputs["bias"], activation="silu")
        assert rms_error_ratio(y, whole[:, t]) <= OUTPUT_TOLERANCE[torch.float32]
    assert torch.equal(state, last)


@both
def test_tensors_with_the_length_inside_give_the_same(operation, case):
    inputs = plain(case)
    turned = {name: x.transpose(1, -1).contiguous().transpose(1, -1) for name, x in inputs.items() if x.ndim > 2}
    for results in zip(
        *(both_passes(case, on_device(operation), x).values() for x in (inputs, inputs | turned)), strict=True
    ):
        assert rms_error_ratio(*results) <= OUTPUT_TOLERANCE[torch.float32]  # their sums run in another order


@both
def test_a_nan_stays_in_its_row(operation, case):
    clean = plain(case)
    dirty = {name: x.clone() for name, x in clean.items()}
    for name in {*ALONG_L, "initial_state"} & dirty.keys():
        dirty[name][1] = float("nan")
    seen = [both_passes(case, on_device(operation), inputs) for inputs in (clean, dirty)]
    for name in {*ALONG_L, "initial_state", "output", "final state"} & seen[0].keys():
        assert torch.equal(seen[0][name][0], seen[1][name][0]), name
        assert seen[1][name][1].isnan().any(), name


@both
def test_a_nan_stays_in_its_sequence(operation, case):
    case = replace(case, lengths=(4, 5, 3))
    clean = plain(case)
    dirty = {name: x.clone() for name, x in clean.items()}
    for name in set(ALONG_L) & dirty.keys():
        dirty[name][:, 4:9] = float("nan")
    dirty["initial_state"][1] = float("nan")
    seen = [both_passes(case, on_device(operation), inputs) for inputs in (clean, dirty)]
    for name in {*ALONG_L, "output"} & seen[0].keys():
        for others in (slice(0, 4), slice(9, None)):
            assert torch.equal(seen[0][name][:, others], seen[1][name][:, others]), name


@both
def test_a_call_repeats_to_the_bit(operation, case):
    inputs = plain(case)
    for results in zip(*(both_passes(case, on_device(operation), inputs).values() for _ in range(2)), strict=True):
        assert torch.equal(*results)


def test_the_forced_backend_is_the_one_that_runs(monkeypatch):
    ran = []
    for module in (scan_kernels, conv_kernels):
        for way in ("forward", "backward", "update"):
            function = getattr(module, way)
            name = f"{module.__name__.split('.')[1]} {way}"
            monkeypatch.setattr(module, way, lambda *a, run=function, name=name: ran.append(name) or run(*a))
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    for operation, case in ((selective_scan, ScanCase(l=2)), (causal_conv1d, ConvCase(l=2))):
        both_passes(case, on_device(operation), plain(case))
    x, weight, state = here(
        {"x": torch.zeros(1, 2), "weight": torch.zeros(2, 4), "state": torch.zeros(1, 2, 3)}
    ).values()
    causal_conv1d_update(x, state, weight)
    selective_state_update(state, x, x, state[0], state[:, 0], state[:, 0])
    assert ran == ["scan forward", "scan backward", "conv forward", "conv backward", "conv update", "scan update"]
    assert scan_operator.BACKENDS["triton"] is scan_kernels
