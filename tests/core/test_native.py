"""The native kernels on the sizes that a vector, a tile or a chunk does not divide, and with every option on and off.

Vectors are 2 to 16 channels wide, tiles 128 channels, blocks of the state up to 16, chunks 16 positions.
"""

import mmap
from functools import partial
from itertools import product

import pytest
import torch

from mmm_core import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mmm_core.conv import operator as conv_operator
from mmm_core.scan import operator as scan_operator
from mmm_core.testing import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    ConvCase,
    ScanCase,
    assert_correct,
    both_passes,
    rms_error_ratio,
    ulps_apart,
)

scan = partial(selective_scan, backend="native")
conv = partial(causal_conv1d, backend="native")
CHANNELS = (1, 5, 17, 127, 129, 300)
STATES = (1, 3, 4, 5, 8, 16, 17, 33, 256)
LENGTHS = (15, 16, 17, 33, 65, 257)
# One size at a time is odd here, since the oracle is a loop over scalars.
ORACLE_CASES = {
    **{f"e = {e}": ScanCase(b=1, l=2, e=e, n=2) for e in CHANNELS},
    **{f"n = {n}": ScanCase(b=1, l=3, e=2, n=n) for n in STATES},
    **{f"l = {l}": ScanCase(b=1, l=l, e=2, n=2, reverse=l == 65) for l in LENGTHS},
    **{f"conv, e = {e}": ConvCase(b=1, l=2, e=e) for e in CHANNELS},
    **{f"conv, k = {k}": ConvCase(b=1, l=9, e=2, k=k) for k in (1, 2, 3, 4, 5, 8, 17, 40)},
    **{f"conv, l = {l}": ConvCase(b=1, l=l, e=2, k=3 + (l == 65), reverse=l == 33) for l in LENGTHS},
}
# Here they are odd together, against the definition in float64, which the oracle vouches for.
TOGETHER = {
    "tiles, chunks and blocks": ScanCase(b=2, l=65, e=129, n=17),
    "many states": ScanCase(b=1, l=33, e=5, n=256),
    "groups of a tile and a bit": ScanCase(b=2, l=31, e=390, n=5, groups=3, reverse=True),
    "groups within a tile": ScanCase(b=1, l=257, e=51, n=3, groups=17),
    "packed": ScanCase(lengths=(15, 0, 17, 1, 65, 0), e=300, n=8, groups=2),
    "packed, reverse": ScanCase(lengths=(0, 16, 1, 32, 17), e=127, n=4, reverse=True),
    "conv": ConvCase(b=3, l=65, e=300, k=4),
    "conv, packed": ConvCase(lengths=(15, 0, 17, 1, 65, 0), e=129, k=4, reverse=True),
    "conv, packed, other taps": ConvCase(lengths=(15, 0, 17, 1, 65, 0), e=129, k=7),
}
oracle_cases = pytest.mark.parametrize("case", ORACLE_CASES.values(), ids=ORACLE_CASES.keys())
together = pytest.mark.parametrize("case", TOGETHER.values(), ids=TOGETHER.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def operation_of(case):
    return scan if isinstance(case, ScanCase) else conv


@oracle_cases
@dtypes
def test_odd_sizes_match_the_oracle(case, dtype):
    assert_correct(case, operation_of(case), dtype)


def close_to_the_definition(case, inputs):
    """Check both passes in float32 against the definition in float64."""
    actual = both_passes(case, scan, inputs)
    definition = partial(selective_scan, backend="chunked")
    exact = both_passes(case, definition, {name: x.double() for name, x in inputs.items()})
    for name, expected in exact.items():
        tolerance = (OUTPUT_TOLERANCE if name in ("output", "final state") else GRADIENT_TOLERANCE)[torch.float32]
        assert rms_error_ratio(actual[name], expected) <= tolerance, name


@pytest.mark.parametrize("least", [1e-3, 1e-2])
@pytest.mark.parametrize("mean", [0, 1])
def test_a_long_memory_is_exact(least, mean):
    """Steps and transitions as a `Mamba` layer begins with: what a decay near 1 is off would add up."""
    case = ScanCase(b=1, l=4096, e=24, n=16, delta_bias=False, delta_softplus=False, initial_state=False)
    inputs = {name: x.detach() for name, x in case.inputs().items()}
    inputs["u"] += mean
    inputs["delta"] = least * (1e-1 / least) ** torch.rand(1, 4096, 24)  # log-uniform
    inputs["A"] = -torch.arange(1.0, 17.0).expand(24, 16).clone()
    close_to_the_definition(case, inputs)


@pytest.mark.parametrize(("b", "l"), [(1, 65536), (30000, 1), (700, 40)])
def test_sums_over_many_positions_and_rows_stay_exact(b, l):
    case = ScanCase(b=b, l=l, e=10, n=2, initial_state=False)
    close_to_the_definition(case, case.inputs())


@pytest.mark.parametrize("name", ["B", "C", "initial_state"])
def test_an_infinity_stays_where_the_definition_has_it(name):
    case = ScanCase(b=2, l=20, e=17, n=4)
    inputs = {key: x.detach().clone() for key, x in case.inputs().items()}
    inputs[name][0, 3, 1] = float("inf")
    actual, expected = (both_passes(case, partial(selective_scan, backend=b), inputs) for b in ("native", "reference"))
    for key, x in actual.items():
        assert torch.equal(x.isnan(), expected[key].isnan()), key
        assert torch.equal(x.isinf(), expected[key].isinf()), key


def test_every_half_is_read_and_written_as_it_is():
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).view(1, -1, 16)
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        try:
            out = conv(halves, torch.full((16, 1), 2.0**9)).float()
        finally:
            torch.set_flush_denormal(False)
        torch.testing.assert_close(out, (halves.float() * 2**9).half().float(), rtol=0, atol=0, equal_nan=True)


def test_offsets_of_more_than_32_bits():
    apart = 2**31 + 5  # numbers between two positions
    memory = mmap.mmap(-1, 2 * (apart + 20))  # pages that nobody touches take no room
    x = torch.frombuffer(memory, dtype=torch.float16).as_strided((1, 2, 20), (0, apart, 1))
    x.copy_(torch.linspace(-1, 1, 40).view(1, 2, 20))
    near, weight = x.clone(), torch.rand(20, 4)
    assert torch.equal(conv(x, weight), conv(near, weight))
    case = ScanCase(b=1, l=2, e=20, n=3, z=False, initial_state=False)
    inputs = {name: tensor.detach() for name, tensor in case.inputs().items()}
    far, close = (both_passes(case, scan, inputs | {"u": u}) for u in (x, near))
    assert all(torch.equal(far[name], close[name]) for name in far)


LARGE = {  # 9 MB a tensor: gradients go past the caches where rows are whole lines, else not
    "lines": ScanCase(b=1, l=2200, e=1040, n=2),
    "lines, reverse": ScanCase(b=1, l=2200, e=1024, n=1, reverse=True),
    "no lines": ScanCase(b=2, l=1100, e=1033, n=1, z=False),
}


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_large_tensors_are_written_as_small_ones_are(case):
    close_to_the_definition(case, case.inputs())


@together
@dtypes
def test_odd_sizes_together_match_the_definition_in_float64(case, dtype):
    inputs = case.inputs(dtype)
    definition = partial(operation_of(case).func, backend="reference")
    expected = both_passes(case, definition, {name: x.double() for name, x in inputs.items()})
    for name, actual in both_passes(case, operation_of(case), inputs).items():
        tolerance = OUTPUT_TOLERANCE if name in ("output", "final state") else GRADIENT_TOLERANCE
        assert rms_error_ratio(actual, expected[name]) <= tolerance[dtype], name


@together
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_odd_sizes_in_half_precision_are_the_rounded_float32_results(case, dtype):
    inputs = case.inputs(dtype)
    halves = both_passes(case, operation_of(case), inputs)
    wide = both_passes(case, operation_of(case), {name: x.float() for name, x in inputs.items()})
    for name, half in halves.items():
        if half.dtype == dtype:
            assert ulps_apart(half, wide[name].to(dtype)) <= 1, name
        else:
            assert (name, half.dtype) == ("final state", torch.float32)
            assert torch.equal(half, wide[name])


SWITCHES = ("D", "z", "delta_bias", "initial_state", "delta_softplus")
COMBINATIONS = [dict(zip(SWITCHES, values, strict=True)) for values in product((False, True), repeat=len(SWITCHES))]


@pytest.mark.parametrize("l", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("on", COMBINATIONS, ids=lambda on: "+".join(name for name in SWITCHES if on[name]) or "none")
def test_gradcheck_with_every_option_on_and_off(on, l):
    case = ScanCase(b=1, l=l, e=2, n=2, **on)
    inputs = case.inputs(torch.float64)

    def both_outputs(*tensors):
        return scan(**dict(zip(inputs, tensors, strict=True)), **case.options(), return_final_state=True)

    assert torch.autograd.gradcheck(both_outputs, tuple(inputs.values()))


@pytest.mark.parametrize("l", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("initial_state", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_gradcheck_of_the_convolution(l, bias, initial_state, activation, k):
    case = ConvCase(b=1, l=l, e=2, k=k, bias=bias, initial_state=initial_state, activation=activation)
    inputs = case.inputs(torch.float64)

    def both_outputs(*tensors):
        return conv(**dict(zip(inputs, tensors, strict=True)), **case.options(), return_final_state=True)

    assert torch.autograd.gradcheck(both_outputs, tuple(inputs.values()))


@pytest.mark.parametrize("case", [ScanCase(b=2, l=64, e=256, n=16), ConvCase(b=4, l=256, e=256)])
def test_a_call_on_the_cpu_is_native_in_both_passes(case, pool, no_other_backend):
    operation = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    inputs = case.inputs()
    with torch.no_grad():
        operation(**inputs, **case.options())
    assert len(pool.calls) == 1
    out = operation(**inputs, **case.options())
    assert len(pool.calls) == 2
    out.sum().backward()
    assert len(pool.calls) > 2


def test_a_step_on_the_cpu_is_native(pool, no_other_backend):
    b, e, n, k = 512, 256, 16, 4
    tensor = partial(torch.randn, b)
    selective_state_update(
        tensor(e, n), tensor(e), tensor(e), -torch.rand(e, n), tensor(n), tensor(n), delta_softplus=True
    )
    assert len(pool.calls) == 1
    causal_conv1d_update(tensor(e), tensor(e, k - 1), torch.randn(e, k))
    assert len(pool.calls) == 2


@pytest.fixture
def no_other_backend(monkeypatch):
    """The other backends fail where they are called."""
    for operator in (scan_operator, conv_operator):
        for name in operator.BACKENDS.keys() - {"native"}:
            monkeypatch.setitem(operator.BACKENDS, name, None)
