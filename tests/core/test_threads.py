"""The native kernels give bitwise the same results for any number of threads, and however the work is cut."""

from itertools import accumulate

import pytest
import torch

from mmm_core import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mmm_core.testing import ConvCase, ScanCase

# Each has more tasks than the 16 threads, and each task is worth a thread: see native/parallel.h.
CASES = {
    "scan": ScanCase(b=4, l=33, e=520, n=16),
    "scan, groups": ScanCase(b=3, l=40, e=390, n=17, groups=6, reverse=True),
    "scan, packed": ScanCase(lengths=(33, 0, 65, 1, 40, 97, 31, 50), e=300, n=16),
    "conv": ConvCase(b=5, l=200, e=400),
    "conv, packed": ConvCase(lengths=(70, 0, 200, 1, 300, 33, 150), e=400, k=3, reverse=True),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
pytestmark = pytest.mark.usefixtures("threads")


def both_passes(case, dtype):
    """Both outputs and every gradient."""
    operation = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    inputs = case.inputs(dtype)
    outputs = operation(**inputs, **case.options(), return_final_state=True, backend="native")
    weights = [torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), weights)]


def a_step(dtype):
    """A step of each operation, on more rows than one thread would take."""
    b, e, n, k = 64, 520, 16, 4
    x, delta, z, B, C = (torch.randn(b, size).to(dtype) for size in (e, e, e, n, n))
    A, D, weight = -torch.rand(e, n), torch.randn(e), torch.randn(e, k)
    state, inputs = torch.randn(b, e, n), torch.randn(b, e, k - 1).to(dtype)
    y = selective_state_update(state, x, delta, A, B, C, D, z, D, delta_softplus=True)
    return [y, state, causal_conv1d_update(x, inputs, weight, D, activation="silu"), inputs]


def assert_same(actual, expected):
    assert all(x.isfinite().all() for x in expected)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@cases
@dtypes
def test_any_number_of_threads_gives_the_same_bits(case, dtype):
    torch.set_num_threads(1)
    alone = both_passes(case, dtype)
    for count in range(2, 17):
        torch.set_num_threads(count)
        assert_same(both_passes(case, dtype), alone)


@dtypes
def test_any_number_of_threads_gives_the_same_step(dtype):
    results = []
    for count in range(1, 17):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        results.append(a_step(dtype))
    for result in results[1:]:
        assert_same(result, results[0])


@cases
@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_any_cut_into_pieces_in_any_order_gives_the_same_bits(case, piece, pool):
    whole = both_passes(case, torch.float32)
    pool.piece, pool.calls = piece, []
    assert_same(both_passes(case, torch.float32), whole)
    assert len(pool.calls) >= 2  # the forward and the backward
    assert max(map(len, pool.calls)) > 1


def test_work_is_worth_threads_only_above_a_size(pool):
    tiny, large = ScanCase(b=2, l=3, e=8), CASES["scan"]
    both_passes(tiny, torch.float32)
    assert pool.calls == []
    both_passes(large, torch.float32)
    tasks = max(stop for pieces in pool.calls for _, stop in pieces)
    assert tasks >= 16


def test_the_bounds_of_a_packed_call_may_be_of_any_kind(pool):
    case = CASES["scan, packed"]
    inputs = {name: x.detach() for name, x in case.inputs().items()}
    bounds = torch.tensor([0, *accumulate(case.lengths)])
    kinds = [bounds, bounds.int(), bounds.repeat_interleave(2)[::2]]
    results = [selective_scan(**inputs, delta_softplus=True, cu_seqlens=kind) for kind in kinds]
    assert_same(results[1:], [results[0]] * 2)
    assert len(pool.calls) == 3


@pytest.mark.parametrize("backward", [False, True])
def test_a_pool_that_fails_is_said(backward, pool):
    inputs = ScanCase(b=2, l=64, e=256, n=16).inputs()
    out = selective_scan(**inputs)
    pool.fails = True
    with pytest.raises(RuntimeError) as raised:
        out.sum().backward() if backward else selective_scan(**inputs)
    assert str(raised.value) == (
        "mmm_core: torch's threads could not run the native kernel. Try torch.set_num_threads(1)."
    )
