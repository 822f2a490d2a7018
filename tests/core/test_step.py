"""A single step in place, and the short path past torch's dispatcher: what takes it, what must not, and what stays."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmm_core import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mmm_core.conv import operator as conv_operator
from mmm_core.scan import operator as scan_operator
from mmm_core.testing import OUTPUT_TOLERANCE, ConvCase, ScanCase, rms_error_ratio, scan_oracle

OPERATORS = {"scan": torch.ops.mmm_core.selective_scan.default, "conv": torch.ops.mmm_core.causal_conv1d.default}
POSITIONAL = ("u", "delta", "B", "C", "z", "x")  # the tensors with an axis `l`


def token_of(case, dtype=torch.float32):
    """The tensors of a single step by name, and its state."""
    inputs = {name: x.detach() for name, x in case.inputs(dtype).items()}
    token = {name: x[:, 0] if name in POSITIONAL else x for name, x in inputs.items()}
    return token, token.pop("initial_state")


def scan_step(state, **token):
    return selective_state_update(state, **token, delta_softplus=True)


def conv_step(state, x, **token):
    return causal_conv1d_update(x, state, **token, activation="silu")


STEPS = {"scan": (scan_step, ScanCase(l=1, n=16)), "conv": (conv_step, ConvCase(l=1))}
WHOLE = {
    "scan": (partial(selective_scan, delta_softplus=True), ScanCase(l=3, n=16)),
    "conv": (partial(causal_conv1d, activation="silu"), ConvCase(l=3)),
}
operations = pytest.mark.parametrize("operation", ["scan", "conv"])


def exact_step(state, token, softplus=True):
    """Output and next state in float64, by the oracle."""
    whole = {name: x.unsqueeze(1) if name in POSITIONAL else x for name, x in token.items()}
    whole = {name: x.double() for name, x in whole.items()}
    out, final = scan_oracle(**whole, delta_softplus=softplus, initial_state=state.double(), return_final_state=True)
    return out[:, 0], final


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 3, 4, 8, 16, 24, 32, 256, 272])
@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"D": False, "z": False, "delta_bias": False}], ids=str)
def test_a_step_matches_the_oracle(n, dtype, options):
    token, state = token_of(ScanCase(b=2, l=1, e=6 if n > 100 else 150, n=n, **options), dtype)
    expected, after = exact_step(state, token)
    place = state.data_ptr()
    y = scan_step(state, **token)
    assert rms_error_ratio(y, expected) <= OUTPUT_TOLERANCE[dtype]
    assert rms_error_ratio(state, after) <= OUTPUT_TOLERANCE[dtype]
    assert state.data_ptr() == place


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: torch.stack((x, x), dim=-1)[..., 0],
    "rows apart": lambda x: torch.cat((x, x), dim=-1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("of", ["state", "A", "both"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_state_and_a_may_stand_anyhow(of, layout):
    token, state = token_of(ScanCase(l=1, e=130, n=16))
    expected, after = exact_step(state, token)
    if of != "A":
        state = layout(state)
    if of != "state":
        token["A"] = layout(token["A"])
    assert rms_error_ratio(scan_step(state, **token), expected) <= OUTPUT_TOLERANCE[torch.float32]
    assert rms_error_ratio(state, after) <= OUTPUT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["state", "u", "A", "B", "D"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_any_tensor_may_have_another_dtype(name, dtype):
    token, state = token_of(ScanCase(l=1, n=16))
    if name == "state":
        state = state.to(dtype)
    else:
        token[name] = token[name].to(dtype)
    expected, after = exact_step(state, token)
    y = scan_step(state, **token)
    assert y.dtype == token["u"].dtype
    torch.testing.assert_close(y, expected.to(y.dtype))
    torch.testing.assert_close(state, after.to(state.dtype))


def test_a_row_that_is_expanded_serves_all_rows():
    token, state = token_of(ScanCase(b=3, l=1, n=16))
    token |= {name: token[name][:1].expand_as(token[name]) for name in ("u", "delta", "B", "z")}
    expected, _ = exact_step(state, token)
    assert rms_error_ratio(scan_step(state, **token), expected) <= OUTPUT_TOLERANCE[torch.float32]


@operations
@pytest.mark.parametrize("kind", ["rows", "strides"])
def test_a_state_that_shares_its_memory_is_refused(operation, kind):
    step, case = STEPS[operation]
    token, state = token_of(case)
    shared = state[:1].expand_as(state) if kind == "rows" else state.as_strided(state.shape, (1, 2, 1))
    before = state.clone()
    with pytest.raises(RuntimeError) as caught:
        step(shared, **token)
    assert str(caught.value) == (
        f"a step: each number of the state must have a place of its own in memory, got {tuple(state.shape)} with "
        f"strides {shared.stride()}. Pass state.contiguous()."
    )
    assert torch.equal(state, before)


@operations
def test_a_state_of_strides_that_interlock_is_written(operation):
    step, case = STEPS[operation]
    token, state = token_of(case)
    other = torch.zeros(1000).as_strided(state.shape, (3, 100, 2))
    other.copy_(state)
    torch.testing.assert_close(step(other, **token), step(state, **token))
    torch.testing.assert_close(other.contiguous(), state)


@operations
def test_a_state_of_inference_mode_is_written_there_alone(operation):
    step, case = STEPS[operation]
    token, state = token_of(case)
    with torch.inference_mode():
        other = state.clone()
        y = step(other, **token)
    assert torch.equal(y, step(state, **token))
    assert torch.equal(other, state)
    with pytest.raises(RuntimeError, match="outside InferenceMode"):
        step(other, **token)


@operations
def test_autograd_sees_that_the_state_was_written(operation):
    (step, case), (whole, long) = STEPS[operation], WHOLE[operation]
    token, state = token_of(case)
    loss = whole(**long.inputs() | {"initial_state": state}).sum()
    step(state, **token)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@operations
def test_nan_and_infinity_stay_in_their_row(operation):
    step, case = STEPS[operation]
    token, state = token_of(case)
    clean, expected = state.clone(), None
    expected = step(clean, **token)
    for name in set(token) & set(POSITIONAL):
        for bad in (float("nan"), float("inf")):
            spoilt = token[name].clone()
            spoilt[0] = bad
            other = state.clone()
            y = step(other, **token | {name: spoilt})
            assert torch.equal(y[1], expected[1])
            assert torch.equal(other[1], clean[1])


@operations
def test_any_number_of_threads_gives_the_same_bits(operation):
    step, _ = STEPS[operation]
    case = ScanCase(b=7, l=1, e=700, n=32) if operation == "scan" else ConvCase(b=70, l=1, e=700)
    token, state = token_of(case)
    seen = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append((step(other := state.clone(), **token), other))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(x, y) for run in seen[1:] for x, y in zip(run, seen[0], strict=True))


# The short path: taken where nobody looks on, and only there.


def runs_of_the_operator(operation, monkeypatch):
    """A list that grows with each call that goes through the operator."""
    module, name = {"scan": (scan_operator, "selective_scan"), "conv": (conv_operator, "causal_conv1d")}[operation]
    package = {"scan": "mmm_core.scan", "conv": "mmm_core.conv"}[operation]
    seen, through = [], getattr(module, name)
    monkeypatch.setattr(f"{package}._operator", lambda *arguments: seen.append(name) or through(*arguments))
    return seen


def call_of(operation, kind):
    """A call without gradients, of a whole sequence or of a single step, and its tensors by name."""
    if kind == "whole":
        run, case = WHOLE[operation]
        return run, {name: x.detach() for name, x in case.inputs().items()}
    run, case = STEPS[operation]
    token, state = token_of(case)
    return run, token | {"state": state}


kinds = pytest.mark.parametrize("kind", ["whole", "step"])


@operations
@kinds
def test_a_plain_call_takes_the_short_path(operation, kind, monkeypatch):
    run, tensors = call_of(operation, kind)
    seen = runs_of_the_operator(operation, monkeypatch)
    run(**tensors)
    with torch.no_grad():
        run(**{name: torch.nn.Parameter(x) for name, x in tensors.items()})
    with torch.inference_mode():
        run(**{name: x.clone() for name, x in tensors.items()})
    assert seen == []


@operations
def test_a_gradient_is_that_of_the_operator(operation, monkeypatch):
    run, case = WHOLE[operation]
    inputs = case.inputs()
    results = []
    for short in (True, False):
        seen = runs_of_the_operator(operation, monkeypatch)
        if not short:
            monkeypatch.setattr(f"mmm_core.{operation}.eager", lambda tensors: False)
        outputs = run(**inputs, return_final_state=True)
        assert len(seen) == (0 if short else 1)
        weights = [torch.linspace(-1, 1, y.numel()).view_as(y) for y in outputs]
        results.append((*outputs, *torch.autograd.grad(outputs, list(inputs.values()), weights)))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@operations
def test_one_output_alone_has_a_gradient(operation):
    run, case = WHOLE[operation]
    inputs = case.inputs()
    for place in (0, 1):
        outputs = run(**inputs, return_final_state=True)
        weights = [torch.ones_like(y) if i == place else torch.zeros_like(y) for i, y in enumerate(outputs)]
        alone = torch.autograd.grad(outputs[place].sum(), list(inputs.values()), materialize_grads=True)
        both = torch.autograd.grad(run(**inputs, return_final_state=True), list(inputs.values()), weights)
        assert all(torch.equal(x, y) for x, y in zip(alone, both, strict=True))


def gradients_of(operation, differentiate):
    """The gradients of a plain call and those that `differentiate` makes of an output and the inputs."""
    run, case = WHOLE[operation]
    inputs = [x.detach().requires_grad_() for x in case.inputs().values()]
    outputs = [run(**dict(zip(case.inputs(), inputs, strict=True))) for _ in range(2)]
    plain = torch.autograd.grad(outputs[0], inputs, torch.ones_like(outputs[0]))
    return plain, differentiate(outputs[1], inputs)


@operations
def test_a_negated_gradient_is_read_as_it_looks(operation):
    def differentiate(out, inputs):
        whole = torch.complex(torch.zeros_like(out), out)  # its gradient is the negated view of a conjugate's part
        return torch.autograd.grad(whole, inputs, torch.complex(torch.ones_like(out), torch.ones_like(out)).conj())

    plain, negated = gradients_of(operation, differentiate)
    assert all(torch.equal(x, -y) for x, y in zip(plain, negated, strict=True))


@operations
def test_a_gradient_of_nothing_but_zeros_is_zero(operation):
    zeros = torch._efficientzerotensor  # what torch makes for gradients that are known to be zero
    plain, grads = gradients_of(operation, lambda out, x: torch.autograd.grad(out, x, zeros(out.shape)))
    assert all(torch.equal(y, torch.zeros_like(x)) for x, y in zip(plain, grads, strict=True))


@operations
def test_gradients_may_come_in_batches(operation):
    def differentiate(out, inputs):
        return torch.autograd.grad(out, inputs, torch.ones(2, *out.shape), is_grads_batched=True)

    plain, batched = gradients_of(operation, differentiate)
    for x, y in zip(plain, batched, strict=True):
        torch.testing.assert_close(y, torch.stack((x, x)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, inside
@operations
def test_compiled_autograd_keeps_a_node(operation):
    def differentiate(out, inputs):
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            out.sum().backward()
        return [x.grad for x in inputs]

    plain, compiled = gradients_of(operation, differentiate)
    assert all(torch.equal(x, y) for x, y in zip(plain, compiled, strict=True))


@operations
@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()], ids=["linear", "square"])
def test_a_gradient_has_no_gradient_of_its_own(operation, loss):
    run, case = WHOLE[operation]
    inputs = case.inputs()
    scale = torch.ones((), requires_grad=True)  # before the operation, as a layer's weights are
    (grad,) = torch.autograd.grad(
        loss(run(**{name: scale**2 * x for name, x in inputs.items()})), scale, create_graph=True
    )
    with pytest.raises(RuntimeError, match="There is no second derivative"):
        torch.autograd.grad(grad, scale)


class Marked(torch.Tensor):
    """A subclass that remembers the functions that it sees."""

    seen: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs)


@operations
@kinds
def test_a_subclass_sees_the_operator(operation, kind):
    run, tensors = call_of(operation, kind)
    expected = run(**{name: x.clone() for name, x in tensors.items()})
    Marked.seen.clear()
    name = "u" if operation == "scan" else "x"
    out = run(**tensors | {name: tensors[name].as_subclass(Marked)})
    assert any(OPERATORS[operation]._opname in function for function in Marked.seen)
    assert type(out) is Marked
    torch.testing.assert_close(out.as_subclass(torch.Tensor), expected)


@operations
@kinds
def test_a_mode_sees_the_operator(operation, kind):
    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    seen = []
    run, tensors = call_of(operation, kind)
    with Seen():
        run(**tensors)
    assert OPERATORS[operation] in seen


@operations
@kinds
def test_a_counter_of_operations_counts(operation, kind):
    run, tensors = call_of(operation, kind)
    formula = {OPERATORS[operation].overloadpacket: lambda *shapes, **_: 7}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        run(**tensors)
    assert counter.get_total_flops() == 7


@operations
@kinds
def test_a_function_mode_sees_the_operator(operation, kind):
    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **kwargs or {})

    seen = []
    run, tensors = call_of(operation, kind)
    with Seen():
        run(**tensors)
    assert any(str(OPERATORS[operation]).removesuffix(".default") in name for name in seen)


@operations
@kinds
def test_fake_tensors_stay_fake(operation, kind):
    run, tensors = call_of(operation, kind)
    expected = run(**{name: x.clone() for name, x in tensors.items()})
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(x) for name, x in tensors.items()}
        inside = run(**fakes)
    for out in (inside, run(**fakes)):  # the second outside the mode
        assert isinstance(out, torch._subclasses.FakeTensor)
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)


@operations
@kinds
def test_make_fx_keeps_a_node(operation, kind):
    run, tensors = call_of(operation, kind)
    graph = make_fx(lambda values: run(**dict(zip(tensors, values, strict=True))))(list(tensors.values())).graph
    assert OPERATORS[operation] in [node.target for node in graph.nodes]


@operations
@kinds
def test_export_and_compile_keep_a_node(operation, kind):
    run, tensors = call_of(operation, kind)
    expected = run(**{name: x.clone() for name, x in tensors.items()})

    class Module(torch.nn.Module):
        def forward(self, values):
            return run(**values)

    for strict in (False, True):
        program = torch.export.export(Module(), (tensors,), strict=strict)
        graphs = [module.graph for module in program.graph_module.modules()]
        assert OPERATORS[operation] in [node.target for graph in graphs for node in graph.nodes]
    targets = []

    def backend(module, _):
        targets.extend(node.target for node in module.graph.nodes)
        return module.forward

    copies = {name: x.clone() for name, x in tensors.items()}
    compiled = torch.compile(lambda **values: run(**values), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(**copies), expected)
    assert any("mmm_core" in str(target) for target in targets)


@operations
def test_a_transform_that_the_operator_lacks_raises(operation):
    """It does not pass for a call without gradients."""
    run, tensors = call_of(operation, "whole")
    name = "u" if operation == "scan" else "x"
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: run(**tensors | {name: x}).square().sum())(tensors[name])


def tangent_of_forward_ad(f, x):
    with torch.no_grad(), forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def tangent_of_jvp(f, x):
    return torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


@operations
@kinds
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch makes its own by it
@pytest.mark.parametrize("tangent", [tangent_of_forward_ad, tangent_of_jvp, lambda f, x: torch.func.jacfwd(f)(x)])
def test_tangents_are_refused(operation, kind, tangent):
    """They are not dropped."""
    run, tensors = call_of(operation, kind)
    whole, name = kind == "whole", "u" if operation == "scan" else "x"
    where = {"scan": ("selective_state_update", "selective_scan"), "conv": ("causal_conv1d_update", "causal_conv1d")}
    with pytest.raises(RuntimeError) as caught:
        tangent(lambda x: run(**tensors | {name: x}), tensors[name])
    assert str(caught.value) == (
        f"{where[operation][whole]}: tensors without tangents of forward-mode gradients were expected, as of "
        "torch.func.jvp, got one with. There is a gradient by backward alone: use torch.autograd.grad."
    )


@operations
@kinds
def test_a_call_without_tangents_beside_others_with(operation, kind):
    run, tensors = call_of(operation, kind)
    expected = run(**{name: x.clone() for name, x in tensors.items()})
    with forward_ad.dual_level():
        torch.testing.assert_close(run(**tensors), expected)


@operations
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap runs it row by row
def test_vmap_gives_each_rows_result(operation):
    run, tensors = call_of(operation, "whole")
    name = "u" if operation == "scan" else "x"
    many = torch.stack((tensors[name], 2 * tensors[name]))
    mapped = torch.func.vmap(lambda x: run(**tensors | {name: x}))(many)
    torch.testing.assert_close(mapped, torch.stack([run(**tensors | {name: x}) for x in many]))


@operations
@kinds
@pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_trace_keeps_a_node(operation, kind):
    run, tensors = call_of(operation, kind)
    names = list(tensors)
    traced = torch.jit.trace(
        lambda *values: run(**dict(zip(names, values, strict=True))), tuple(tensors.values()), check_trace=False
    )
    assert f"mmm_core::{OPERATORS[operation]._opname}" in str(traced.graph)


@operations
@kinds
def test_a_profile_shows_the_operator(operation, kind):
    run, tensors = call_of(operation, kind)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(**tensors)
    assert f"mmm_core::{OPERATORS[operation]._opname}" in {event.key for event in seen.key_averages()}


def test_a_tensor_is_read_as_it_looks():
    """The imaginary part of a conjugate is a view whose numbers are the negatives of what stands in its memory."""
    run, tensors = call_of("scan", "whole")
    u = torch.complex(torch.zeros_like(tensors["u"]), tensors["u"]).conj().imag
    assert u.is_neg()
    assert torch.equal(run(**tensors | {"u": u}), run(**tensors | {"u": -tensors["u"]}))
