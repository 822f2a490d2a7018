"""Triton's compiler takes every kernel as it is called, sizes of 1 and packed sequences included.

The interpreter runs what the compiler refuses: a size of 1 is a constant to the compiler alone, and branches must agree
in types. No GPU is needed: each call is compiled for one of NVIDIA's and one of AMD's, and not run.
"""

from dataclasses import replace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from mmm_core.conv import triton_gpu as conv
from mmm_core.conv.problem import Problem as ConvProblem
from mmm_core.scan import triton_gpu as scan
from mmm_core.scan.problem import Problem as ScanProblem
from mmm_core.testing import ConvCase, ScanCase

TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "rocm": GPUTarget("hip", "gfx942", 64)}
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
SCANS = {
    "sizes of 1": ScanCase(b=1, l=1, e=1, n=1),
    "nothing but what must be": ScanCase(D=False, z=False, delta_bias=False, initial_state=False, groups=2),
    "one packed sequence": ScanCase(lengths=(5,), reverse=True),
    "packed sequences": ScanCase(lengths=(3, 0, 70), e=40, n=16),
    "many states": ScanCase(b=1, l=300, e=256, n=70),
}
CONVS = {
    "sizes of 1": ConvCase(b=1, l=1, e=1, k=1),
    "nothing but what must be": ConvCase(bias=False, activation=None, initial_state=False),
    "one packed sequence": ConvCase(lengths=(5,), reverse=True),
    "packed sequences": ConvCase(lengths=(3, 0, 70), e=40, k=9),
}


@pytest.fixture(autouse=True, params=TARGETS)
def compiled(request, monkeypatch):
    """The names of the kernels that were compiled; calls run nothing."""
    names, target = [], TARGETS[request.param]
    monkeypatch.setattr(torch.version, "hip", "7.0" if request.param == "rocm" else None)

    def compile_call(kernel, *args, grid, warmup, **options):
        values = dict(zip(kernel.arg_names, args, strict=False))
        values |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        signature, constants = {}, {}
        for i, (name, value) in enumerate(values.items()):
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
            elif (
                value is None
                or kernel.params[i].is_constexpr
                or (value == 1 and not kernel.params[i].do_not_specialize)
            ):
                signature[name], constants[i,] = "constexpr", value
            else:
                signature[name] = "i32"
        assert list(signature) == kernel.arg_names
        known = vars(make_backend(target).parse_options(dict(options)))
        assert options.keys() <= known.keys()  # a launch refuses others
        assert len(grid) == 1  # the others of a grid's axes end at 65,535
        triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
        names.append(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", compile_call)
    return names


def tensors_of(case, dtype):
    inputs = {name: x.detach() for name, x in case.inputs(dtype).items()}
    return inputs | {name: x for name, x in case.options().items() if isinstance(x, torch.Tensor)}


def scan_problem(case, dtype):
    x = tensors_of(case, dtype)
    B, C = (x[name] if x[name].ndim == 4 else x[name].unsqueeze(2) for name in "BC")
    rest = (x.get(name) for name in ("D", "z", "delta_bias", "initial_state", "cu_seqlens"))
    return ScanProblem(x["u"], x["delta"], x["A"], B, C, *rest, case.delta_softplus, case.reverse)


@pytest.mark.parametrize(
    ("warps", "dtype"),
    [(1, torch.bfloat16), (10**6, torch.float32), (1, torch.float64)],
    ids=["whole", "in parts", "float64"],
)
@pytest.mark.parametrize("case", SCANS.values(), ids=SCANS.keys())
def test_the_scan(case, dtype, warps, compiled, monkeypatch):
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(scan, name, getattr(scan, name)._replace(full=warps))
    monkeypatch.setattr(scan, "LEAST_PART", 1)
    p = scan_problem(case, dtype)
    out, state, checkpoints = scan.forward(p, True)
    scan.backward(p, checkpoints, torch.empty_like(out), torch.empty_like(state))
    assert {"gather_projections", "scan_forward", "scan_backward", "scatter_projections"} <= set(compiled)


@pytest.mark.parametrize("case", CONVS.values(), ids=CONVS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_convolution(case, dtype, compiled):
    x = tensors_of(case, dtype)
    rest = (x.get(name) for name in ("bias", "initial_state", "cu_seqlens"))
    p = ConvProblem(x["x"], x["weight"], *rest, case.activation == "silu", case.reverse)
    out, state = conv.forward(p)
    conv.backward(p, torch.empty_like(out), torch.empty_like(state))
    assert compiled == ["forward", "backward_of_sums", "backward_of_inputs"]


@pytest.mark.parametrize("case", [ScanCase(b=1, e=1, n=1), ScanCase(e=40, n=200, groups=2)], ids=str)
def test_a_step_of_the_scan(case, compiled):
    x = tensors_of(replace(case, l=1), torch.bfloat16)
    now = {name: y[:, 0] if name in ("u", "delta", "B", "C", "z") else y for name, y in x.items()}
    arguments = (now[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"))
    scan.update(*arguments, True)
    assert compiled == ["scan_update"]


@pytest.mark.parametrize("k", [1, 4])
def test_a_step_of_the_convolution(k, compiled):
    x = tensors_of(ConvCase(l=1, k=k), torch.bfloat16)
    conv.update(x["x"][:, 0], x["weight"], x["bias"], x["initial_state"], True)
    assert compiled == ["update"]
