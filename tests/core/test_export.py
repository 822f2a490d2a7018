"""Compiled and exported: one graph for every length, and programs that need nothing of this package to run."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from mmm_core import BiMamba, Mamba, MambaState, causal_conv1d, selective_scan
from mmm_core.export import decompositions
from mmm_core.testing import ConvCase, ScanCase, assert_correct

# The warnings are torch's own.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
LENGTHS = (5, 9, 17, 33, 2, 130)
LAYERS = {
    "mamba": partial(Mamba, 8),
    "mamba, norms": partial(Mamba, 8, selection_norm=1e-6, selection_norm_weight=True),
    "bimamba": partial(BiMamba, 8),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
CASES = {
    "plain": ScanCase(D=False, z=False, delta_bias=False, initial_state=False, delta_softplus=False),
    "everything": ScanCase(),
    "one position": ScanCase(l=1),
    "groups": ScanCase(b=3, groups=3),
    "reverse groups": ScanCase(l=65, e=4, groups=2, reverse=True),
    "packed, empty ones": ScanCase(lengths=(0, 3, 0, 0, 35, 0), groups=2),
    "packed, reverse": ScanCase(lengths=(31, 0, 1, 33), reverse=True),
    "packed, fresh": ScanCase(lengths=(2, 7), initial_state=False),
    "convolution": ConvCase(),
    "convolution, plain": ConvCase(bias=False, activation=None, initial_state=False),
    "convolution, reverse": ConvCase(reverse=True),
    "convolution, packed": ConvCase(lengths=(3, 1, 40, 0, 17)),
    "convolution, packed, reverse": ConvCase(lengths=(0, 31, 0, 1, 33), reverse=True),
    "convolution, one tap": ConvCase(k=1, lengths=(2, 3)),
    "convolution, packed, fresh": ConvCase(lengths=(2, 7), initial_state=False),
}


class Call(torch.nn.Module):
    """A function of named tensors as a module, for torch.export."""

    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, tensors):
        return self.function(**tensors, **self.options)


def operators(program):
    """The names of this package's operators in a program."""
    return [str(node.target) for node in program.graph.nodes if "mmm_core" in str(node.target)]


def by_decomposition(operation, **arguments):
    """Call an operation in an exported program that has no operator of this package."""
    tensors = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    options = {name: x for name, x in arguments.items() if name not in tensors}
    detached = {name: x.detach() for name, x in tensors.items()}
    program = torch.export.export(Call(operation, **options), (detached,)).run_decompositions(decompositions())
    assert not operators(program)
    return program.module()(tensors)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decompositions_match_the_oracle_with_their_gradients(case):
    operation = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    assert_correct(case, partial(by_decomposition, operation), torch.float32)


@pytest.mark.parametrize("case", [ScanCase(), ConvCase()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_decompositions_keep_the_dtypes(case, dtype):
    operation = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    inputs = {name: x.detach() for name, x in case.inputs(dtype).items()}
    arguments = inputs | case.options() | {"return_final_state": True}
    expected = operation(**arguments)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(by_decomposition(operation, **arguments), expected, rtol=tolerance, atol=tolerance)


@layers
def test_a_program_without_our_operators_takes_any_batch_and_length(make):
    layer = make()
    dynamic = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    program = torch.export.export(layer, (torch.randn(2, 7, 8),), dynamic_shapes=dynamic)
    assert operators(program)
    program = program.run_decompositions(decompositions())
    assert not operators(program)
    for b, l in ((1, 1), (3, 17), (2, 130)):
        x = torch.randn(b, l, 8)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_a_program_takes_any_number_of_packed_texts():
    layer = Mamba(8)
    texts = {"cu_seqlens": torch.tensor([0, 3, 7])}
    dynamic = {"x": {1: Dim.DYNAMIC}, "cu_seqlens": {0: Dim.DYNAMIC}}
    program = torch.export.export(layer, (torch.randn(1, 7, 8),), texts, dynamic_shapes=dynamic)
    for each in (program, program.run_decompositions(decompositions())):
        for bounds in ([0, 2, 2, 9, 12], [0, 1, 5, 6]):
            x, cu_seqlens = torch.randn(1, bounds[-1], 8), torch.tensor(bounds)
            torch.testing.assert_close(each.module()(x, cu_seqlens=cu_seqlens), layer(x, cu_seqlens=cu_seqlens))


def step_program(layer):
    """A program of one token: the state goes in, and comes out."""
    state = MambaState(torch.zeros(2, 16, 3), torch.zeros(2, 16, 16))
    batch = {0: Dim.DYNAMIC}
    dynamic = {"x": batch, "state": MambaState(batch, batch), "return_state": None}
    return torch.export.export(layer, (torch.zeros(2, 1, 8), state), {"return_state": True}, dynamic_shapes=dynamic)


def test_a_step_is_a_program_that_takes_and_returns_the_state(tmp_path):
    layer, x = Mamba(8), torch.randn(3, 6, 8)
    expected = layer(x)
    program = step_program(layer)
    torch.export.save(program, tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2")
    for each in (loaded, program.run_decompositions(decompositions())):
        state = MambaState(torch.zeros(3, 16, 3), torch.zeros(3, 16, 16))
        for t in range(6):
            y, state = each.module()(x[:, t : t + 1], state, return_state=True)
            torch.testing.assert_close(y, expected[:, t : t + 1])
        assert isinstance(state, MambaState)


def test_a_saved_program_runs_without_this_package(tmp_path):
    layer, x = Mamba(8), torch.randn(2, 9, 8)
    dynamic = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    program = torch.export.export(layer, (torch.randn(3, 5, 8),), dynamic_shapes=dynamic)
    torch.export.save(program.run_decompositions(decompositions()), tmp_path / "layer.pt2")
    torch.save({"x": x, "y": layer(x).detach()}, tmp_path / "tensors.pt")
    script = """
import sys
sys.modules["mmm_core"] = None  # whoever imports it fails
import torch
program, tensors = torch.export.load("layer.pt2"), torch.load("tensors.pt")
torch.testing.assert_close(program.module()(tensors["x"]), tensors["y"])
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def train(layer, compiled):
    """A backward for every length, compiled and not."""
    for l in LENGTHS:
        tensors = [torch.randn(2, l, 8, requires_grad=True), *layer.parameters()]
        actual, expected = (torch.autograd.grad(f(tensors[0]).square().sum(), tensors) for f in (compiled, layer))
        torch.testing.assert_close(actual, expected)


@layers
@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_dynamic_graph_trains_every_length(make):
    layer = make()
    torch.compiler.reset()
    train(layer, torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True))


@layers
def test_compiles_twice_at_the_most(make):
    layer = make()
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    train(layer, torch.compile(layer, fullgraph=True, backend=counter))
    assert counter.frame_count == 2  # for the first length, and for every other


def test_steps_compile_once_for_all_tokens_and_layers():
    layers, x = [Mamba(8), Mamba(8)], torch.randn(2, 6, 8)

    def step(token, states):
        for layer, state in zip(layers, states, strict=True):
            token = layer.step(token, state)
        return token

    def zeros():
        return [MambaState(torch.zeros(2, 16, 3), torch.zeros(2, 16, 16)) for _ in layers]

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    states, expected = zeros(), zeros()
    for t in range(6):
        torch.testing.assert_close(compiled(x[:, t], states), step(x[:, t], expected))
    torch.testing.assert_close(states, expected)
    assert counter.frame_count == 1
