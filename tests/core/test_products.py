"""Products of a few rows: against float64, whatever the sizes and strides, and which calls take the kernel."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from mmm_core import BackendUnavailable, products
from mmm_core.products import MOST_ROWS, apply_linear, linear
from mmm_core.testing import OUTPUT_TOLERANCE

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pytestmark = pytest.mark.usefixtures("threads", "instruction_set")


@pytest.fixture
def calls(monkeypatch):
    """The native operations that products call, in order."""
    seen = []

    def call(operation, words):
        seen.append(operation)
        kernel(operation, words)

    kernel = products.call
    monkeypatch.setattr(products, "call", call)
    return seen


@pytest.fixture
def onednn(monkeypatch):
    """The calls of oneDNN's product."""
    seen, product = [], products.ONEDNN
    if product is not None:
        monkeypatch.setattr(products, "ONEDNN", lambda *call: (seen.append(call), product(*call))[1])
    return seen


def operands(b, k, m, dtype=torch.float32, bias=True):
    x, weight, bias_ = torch.randn(b, k), torch.randn(m, k) / k**0.5, torch.randn(m)
    return [x.to(dtype), weight.to(dtype), bias_.to(dtype) if bias else None]


def exact(x, weight, bias=None):
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def assert_close(y, x, weight, bias=None):
    """Each output is the rounding of a number as near to the exact one as the sizes of its terms allow."""
    expected, sizes = exact(x, weight, bias), exact(x.abs(), weight.abs(), None if bias is None else bias.abs())
    margin = sizes * OUTPUT_TOLERANCE.get(y.dtype, 1e-6)
    assert y.dtype == x.dtype
    assert ((expected - margin).to(y.dtype) <= y).all()
    assert (y <= (expected + margin).to(y.dtype)).all()


@dtypes
@pytest.mark.parametrize("k", [1, 2, 3, 8, 15, 16, 17, 31, 48, 63, 64, 65, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_product(k, bias, dtype, calls):
    sizes = [(b, m) for b in range(1, MOST_ROWS + 1) for m in (1, 5, 16, 33)]
    for b, m in sizes:
        case = operands(b, k, m, dtype, bias)
        assert_close(linear(*case), *case)
    assert calls == ["mmm_core_product"] * len(sizes)


@dtypes
def test_large_sums_stay_exact(dtype):
    case = operands(3, 3000, 80, dtype)
    assert_close(linear(*case), *case)


def test_rows_may_stand_anyhow(calls):
    x, weight, bias = operands(5, 35, 21)
    for rows in (x.mT.contiguous().mT, torch.stack((x, x), dim=-1)[..., 0], torch.cat((x, x), dim=1)[:, :35]):
        wide = torch.cat((weight, torch.full((21, 3), torch.nan)), dim=1)[:, :35]
        spread = torch.stack((bias, torch.full_like(bias, torch.nan)), dim=1)[:, 0]
        assert_close(linear(rows, wide, spread), x, weight, bias)
    one, same = x[:1].expand(4, 35), bias[:1].expand(21)
    assert torch.equal(linear(one, weight, same), linear(x[:1], weight, same).expand(4, 21))
    assert len(calls) == 5


@dtypes
def test_a_row_does_not_depend_on_the_others(dtype):
    x, weight, bias = operands(MOST_ROWS, 203, 50, dtype)
    alone = torch.cat([linear(row[None], weight, bias) for row in x])
    for b in range(1, MOST_ROWS + 1):
        assert torch.equal(linear(x[:b], weight, bias), alone[:b])
    x[1] = torch.nan
    x[2, 5] = torch.inf
    y = linear(x, weight, bias)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, *range(3, MOST_ROWS)]], alone[[0, *range(3, MOST_ROWS)]])


@dtypes
@pytest.mark.parametrize("b", [1, 5])
def test_any_number_of_threads_gives_the_same_bits(b, dtype):
    case = operands(b, 1030, 5003, dtype)
    torch.set_num_threads(1)
    alone = linear(*case)
    for count in range(2, 17):
        torch.set_num_threads(count)
        assert torch.equal(linear(*case), alone)


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_any_cut_into_pieces_gives_the_same_bits(piece, pool):
    case = operands(3, 2050, 3000)
    whole = linear(*case)
    pool.piece, pool.calls = piece, []
    assert torch.equal(linear(*case), whole)
    assert [len(pieces) > 10 for pieces in pool.calls] == [True]


def test_what_is_small_wakes_no_thread(pool):
    linear(*operands(8, 100, 100))
    assert pool.calls == []


@pytest.mark.parametrize(
    "shapes", [((3, 5), (0, 5)), ((0, 5), (4, 5)), ((2, 0), (4, 0)), ((2, 3, 5), (4, 5)), ((5,), (4, 5))]
)
def test_other_shapes_are_torchs(shapes):
    x, weight = (torch.randn(shape) for shape in shapes)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(2, 5), torch.zeros(4, 6)),
        (torch.zeros(2, 5), torch.zeros(4, 5), torch.zeros(3)),
        (torch.zeros(2, 5), torch.zeros(4, 5).double()),
        (torch.zeros(2, 5), torch.zeros(4, 5, 1)),
    ],
)
def test_wrong_arguments_raise_as_torch_does(arguments):
    with pytest.raises(RuntimeError) as expected:
        F.linear(*arguments)
    with pytest.raises(RuntimeError) as raised:
        linear(*arguments)
    assert str(raised.value) == str(expected.value)


def test_whole_numbers_are_torchs():
    x, weight = torch.randint(9, (2, 5)), torch.randint(9, (4, 5))
    assert torch.equal(linear(x, weight), x @ weight.T)


@pytest.mark.parametrize("of", ["x", "weight", "bias"])
def test_it_has_torchs_gradient(of, calls):
    case = dict(zip(("x", "weight", "bias"), operands(2, 5, 4), strict=True))
    case[of].requires_grad_()
    (grad,) = torch.autograd.grad(linear(**case).square().sum(), case[of])
    (expected,) = torch.autograd.grad(F.linear(**case).square().sum(), case[of])
    assert torch.equal(grad, expected)
    assert calls == []
    with torch.no_grad():
        linear(**case)
    assert calls == ["mmm_core_product"]


@dtypes
def test_more_rows_take_onednn_in_float32_and_else_torch(dtype, calls, onednn):
    for shape in ((MOST_ROWS + 1, 35), (2, 17, 35), (2, 3, 5, 35)):
        _, weight, bias = operands(1, 35, 21, dtype)
        x = torch.randn(*shape).to(dtype)
        for rows in (x, torch.stack((x, x), dim=-1)[..., 0]):
            for matrix in (weight, weight.mT.contiguous().mT):
                y = linear(rows, matrix, bias)
                if dtype == torch.float32:
                    assert_close(y, rows, matrix, bias)
                else:
                    assert torch.equal(y, F.linear(rows, matrix, bias))
    assert calls == []
    assert len(onednn) == (12 if dtype == torch.float32 and products.ONEDNN else 0)


@dtypes
def test_few_rows_may_have_more_axes(dtype, calls):
    _, weight, bias = operands(1, 35, 21, dtype)
    for shape in ((35,), (1, 1, 35), (2, 3, 35), (2, 2, 2, 35)):
        x = torch.randn(*shape).to(dtype)
        y = linear(x, weight, bias)
        assert y.shape == (*shape[:-1], 21)
        assert_close(y, x, weight, bias)
    assert calls == ["mmm_core_product"] * 4


def test_a_transposed_weight_is_none_of_the_kernels(calls):
    x, weight, bias = operands(2, 5, 4)
    assert_close(linear(x, weight.mT.contiguous().mT, bias), x, weight, bias)
    assert calls == []


def test_torchs_switch_of_onednn_counts(onednn):
    case = operands(MOST_ROWS + 1, 5, 4)
    torch._C._set_mkldnn_enabled(False)
    try:
        assert torch.equal(linear(*case), F.linear(*case))
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert onednn == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, on first use
@pytest.mark.parametrize("b", [2, 2 * MOST_ROWS])
def test_it_has_torchs_forward_derivative(b, calls, onednn):
    x, weight, bias = operands(b, 5, 4)
    tangent = torch.randn(b, 5)
    with forward_ad.dual_level():
        y = linear(forward_ad.make_dual(x, tangent), weight, bias)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, tangent @ weight.mT)
    assert calls == onednn == []


def test_autocast_counts(calls):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(*operands(2, 5, 4)).dtype == torch.bfloat16
    assert calls == []


def test_a_forced_backend_counts(calls, monkeypatch):
    case = operands(2, 5, 4)
    monkeypatch.setenv("MMM_CORE_BACKEND", "chunked")
    assert_close(linear(*case), *case)
    assert calls == []
    monkeypatch.delenv("MMM_CORE_BACKEND")
    monkeypatch.setenv("MMM_CORE_ISA", "sse9")
    with pytest.raises(BackendUnavailable, match="linear: MMM_CORE_ISA is 'sse9'"):
        linear(*case)


def test_it_traces_as_torchs_own():
    case = operands(2, 5, 4)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case), linear(*case))
    with FakeTensorMode() as mode:
        assert linear(*(mode.from_tensor(x) for x in case)).shape == (2, 4)
    assert linear(*(x.to("meta") for x in case)).shape == (2, 4)
    exported = torch.export.export(Plain(), (case[0],))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == ["aten.linear.default"]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 4)

    def forward(self, x):
        return apply_linear(self.inner, x)


class LowRank(nn.Module):
    """As a library for fine-tuning wraps a layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_forward(module):
    module.forward = lambda x: 3 * F.linear(x, module.weight, module.bias)
    return module


def with_hook(module):
    module.register_forward_hook(lambda module, inputs, output: output + 1)
    return module


def with_pre_hook(module):
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return module


def with_parametrisation(module):
    return nn.utils.parametrizations.weight_norm(module)


def compiled(module):
    module.compile(backend="aot_eager")
    return module


OTHERS = {
    "wrapped": lambda module: LowRank(module),
    "subclass": lambda module: Doubled(5, 4),
    "replaced forward": with_forward,
    "hook": with_hook,
    "hook before": with_pre_hook,
    "parametrised": with_parametrisation,
    "sequential": lambda module: nn.Sequential(module, nn.ReLU()),
    "compiled": compiled,
}


@torch.no_grad()
def test_a_plain_linear_takes_the_kernel(calls):
    for bias in (False, True):
        module, x = nn.Linear(5, 4, bias=bias), torch.randn(2, 5)
        torch.testing.assert_close(apply_linear(module, x), module(x))
    assert calls == ["mmm_core_product"] * 2


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
@torch.no_grad()
def test_what_is_no_plain_linear_is_called(change, calls):
    module, x = change(nn.Linear(5, 4)), torch.randn(2, 5)
    assert torch.equal(apply_linear(module, x), module(x))
    assert calls == []


@torch.no_grad()
def test_hooks_on_all_modules_see_it(calls):
    module, seen = nn.Linear(5, 4), []
    handle = register_module_forward_hook(lambda module, inputs, output: seen.append(module))
    try:
        apply_linear(module, torch.randn(2, 5))
    finally:
        handle.remove()
    assert seen == [module]
    assert calls == []


def test_a_linear_that_learns_is_called(calls):
    module, x = nn.Linear(5, 4), torch.randn(2, 5)
    apply_linear(module, x).sum().backward()
    torch.testing.assert_close(module.weight.grad, x.sum(0).expand(4, 5))
    assert calls == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # in make_dual
def test_tangents_are_carried(calls):
    x, weight, _ = operands(2, 5, 3)
    with torch.no_grad(), forward_ad.dual_level():
        out = linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)
        tangent = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, torch.ones_like(x) @ weight.T)
    assert not calls


def test_sparse_rows_are_torchs(calls):
    x, weight, _ = operands(2, 5, 3)
    torch.testing.assert_close(linear(x.to_sparse(), weight), x @ weight.T)
    assert not calls
