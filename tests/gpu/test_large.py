"""What only a GPU can show of the Triton kernels: large tensors, repeats, layers that train. Needs one, and triton."""

from functools import partial

import pytest
import torch

from mmm_core import causal_conv1d, explain, selective_scan
from mmm_core.layers import BiMamba, Mamba
from mmm_core.testing import ConvCase, ScanCase, both_passes, rms_error_ratio

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
PARAMETERS = ("A", "D", "delta_bias", "weight", "bias")
SIZES = [(8, 2048, 2048, 16), (1, 16384, 512, 16), (64, 196, 768, 16), (3, 777, 200, 64), (1, 4099, 70, 5)]


def inputs_of(case, dtype):
    """Inputs on the GPU that require their gradients; parameters in float32."""
    inputs = {name: torch.randn(shape, device="cuda") for name, shape in case.shapes().items()}
    if "A" in inputs:
        inputs["A"] = -inputs["A"].exp()
    kinds = {name: torch.float32 if name in PARAMETERS else dtype for name in inputs}
    return {name: x.to(kinds[name]).requires_grad_() for name, x in inputs.items()}


def test_triton_is_what_runs_here():
    assert explain(torch.empty(0, device="cuda")).chosen == "triton"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", [selective_scan, causal_conv1d])
def test_large_calls_agree_with_float64(operation, size, dtype):
    b, l, e, n = size
    case = ScanCase(b=b, l=l, e=e, n=n) if operation is selective_scan else ConvCase(b=b, l=l, e=e)
    inputs = inputs_of(case, dtype)
    actual = both_passes(case, partial(operation, backend="triton"), inputs)
    wide = {name: x.double() for name, x in inputs.items()}
    exact = both_passes(case, partial(operation, backend="chunked"), wide)
    for name, x in actual.items():
        assert rms_error_ratio(x, exact[name]) <= TOLERANCE[x.dtype], name


@pytest.mark.parametrize("operation", [selective_scan, causal_conv1d])
def test_more_elements_than_32_bits_count(operation):
    b, l, e, n = 1, 2**20 + 5, 2**11 + 1, 1  # 2^31 and more elements
    case = ScanCase(b=b, l=l, e=e, n=n, z=False) if operation is selective_scan else ConvCase(b=b, l=l, e=e)
    torch.manual_seed(0)
    inputs = {name: x.detach() for name, x in inputs_of(case, torch.bfloat16).items()}
    whole, last = operation(**inputs, **case.options(), return_final_state=True)
    cut = l - 4099
    state = operation(**upto(inputs, slice(0, cut)), **case.options(), return_final_state=True)[1]
    rest, final = operation(
        **upto(inputs, slice(cut, None)) | {"initial_state": state}, **case.options(), return_final_state=True
    )
    assert rms_error_ratio(rest, whole[:, cut:]) <= TOLERANCE[torch.bfloat16]
    assert rms_error_ratio(final, last) <= TOLERANCE[torch.float32]
    exact = operation(
        **{name: x.double() for name, x in (upto(inputs, slice(cut, None)) | {"initial_state": state}).items()},
        **case.options(),
        backend="chunked",
    )
    assert rms_error_ratio(whole[:, cut:], exact) <= TOLERANCE[torch.bfloat16]


def upto(inputs, span):
    """The inputs at some positions."""
    return {name: x[:, span] if name in ("u", "delta", "B", "C", "z", "x") else x for name, x in inputs.items()}


@pytest.mark.parametrize("operation", [selective_scan, causal_conv1d])
def test_a_thousand_repeats_are_the_same_to_the_bit(operation):
    case = ScanCase(b=2, l=333, e=130, n=16) if operation is selective_scan else ConvCase(b=2, l=333, e=130)
    inputs = inputs_of(case, torch.bfloat16)
    first = both_passes(case, partial(operation, backend="triton"), inputs)
    for _ in range(999):
        again = both_passes(case, partial(operation, backend="triton"), inputs)
        assert all(torch.equal(first[name], x) for name, x in again.items())


@pytest.mark.parametrize("layer", [Mamba, BiMamba])
def test_a_layer_computes_on_the_gpu_what_it_does_on_the_cpu(layer):
    torch.manual_seed(0)
    on_cpu = layer(48)
    on_gpu = layer(48).cuda()
    on_gpu.load_state_dict(on_cpu.state_dict())
    x = torch.randn(2, 77, 48)
    results = []
    for module, tokens in ((on_cpu, x), (on_gpu, x.cuda())):
        out = module(tokens)
        grads = torch.autograd.grad(out.square().sum(), list(module.parameters()))
        results.append([y.cpu() for y in (out, *grads)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert rms_error_ratio(actual, expected) <= 1e-4


def test_a_layer_decodes_on_the_gpu():
    layer = Mamba(48).cuda()
    x = torch.randn(3, 9, 48, device="cuda")
    whole = layer(x)
    _, state = layer(x[:, :4], return_state=True)
    for t in range(4, 9):
        assert rms_error_ratio(layer.step(x[:, t], state), whole[:, t]) <= 1e-4


def test_a_layer_compiles_and_learns():
    layer = Mamba(32).cuda()
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(4, 33, 32, device="cuda")
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (compiled(x) - x.flip(1).cumsum(1).tanh()).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
