"""`selective_scan` and `selective_state_update` against the oracle, and the promises of their contract."""

import os
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mmm_core import BackendUnavailable, ShapeError, selective_scan, selective_state_update
from mmm_core.scan import chunked, operator
from mmm_core.scan.problem import Problem
from mmm_core.testing import OUTPUT_TOLERANCE, SCAN_CASES, ScanCase, assert_correct, rms_error_ratio, ulps_apart

BACKENDS = os.environ.get("MMM_CORE_TESTED", "native,chunked,reference").split(",")
case_names = pytest.mark.parametrize("case", SCAN_CASES.values(), ids=SCAN_CASES.keys())
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@case_names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_state_and_gradients_match_the_oracle(case, backend, dtype):
    assert_correct(case, partial(selective_scan, backend=backend), dtype)


@backends
@pytest.mark.parametrize(
    "case", [ScanCase(l=4, e=2, n=2), ScanCase(lengths=(2, 0, 3), e=4, n=1, groups=2, reverse=True)]
)
def test_gradcheck_on_both_outputs_and_all_inputs(case, backend):
    inputs = case.inputs(torch.float64)

    def scan(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan(**named, **case.options(), return_final_state=True, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ScanCase(),
        ScanCase(lengths=(3, 0, 4), reverse=True),
        ScanCase(D=False, z=False, delta_bias=False, initial_state=False),
    ],
)
def test_opcheck_forward_and_backward(case, dtype, backend):
    inputs, options = case.inputs(dtype), case.options()
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    tensors = {name: inputs.get(name) for name in names}
    tensors |= {name: tensors[name].detach().unsqueeze(2).requires_grad_() for name in ("B", "C")}
    arguments = [*tensors.values(), options.get("cu_seqlens")]
    flags = (case.delta_softplus, case.reverse)
    torch.library.opcheck(torch.ops.mmm_core.selective_scan, (*arguments, *flags, True, backend))
    arguments = [None if x is None else x.detach() for x in arguments]
    out, state, checkpoints = torch.ops.mmm_core.selective_scan(*arguments, *flags, True, backend)
    torch.library.opcheck(
        torch.ops.mmm_core.selective_scan_backward, (*arguments, checkpoints, out, state, *flags, backend)
    )


@backends
def test_autocast_changes_nothing(backend):
    inputs, seen = ScanCase().inputs(), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = selective_scan(**inputs, delta_softplus=True, backend=backend)
            seen.append((out, *torch.autograd.grad(out.square().sum(), list(inputs.values()))))
    assert all(torch.equal(x, y) for x, y in zip(*seen, strict=True))


def test_checkpoints_are_kept_for_a_gradient_alone(monkeypatch):
    kept = []
    monkeypatch.setattr(chunked, "forward", lambda p, save, run=chunked.forward: kept.append(save) or run(p, save))
    monkeypatch.setenv("MMM_CORE_BACKEND", "chunked")
    inputs = ScanCase().inputs()
    with torch.no_grad():
        selective_scan(**inputs)
    selective_scan(**{name: x.detach() for name, x in inputs.items()})
    selective_scan(**inputs)
    assert kept == [False, False, True]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_compiles_to_one_graph_with_gradients(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # its cache does not see a fake kernel change

    def loss(*tensors):
        out, state = selective_scan(*tensors, delta_softplus=True, return_final_state=True)
        return (out.sin() + 1).sum() + state.cos().sum()

    inputs = ScanCase(initial_state=False).inputs()
    expected = torch.autograd.grad(loss(*inputs.values()), list(inputs.values()))
    actual = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend=compiler)(*inputs.values()), list(inputs.values())
    )
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_export_sees_one_node():
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return selective_scan(u, delta, A, B, C, delta_softplus=True)

    inputs = tuple(x.detach() for x in list(ScanCase().inputs().values())[:5])
    program = torch.export.export(Scan(), inputs)
    scans = [node for node in program.graph.nodes if "mmm_core" in str(node.target)]
    assert [str(node.target) for node in scans] == ["mmm_core.selective_scan.default"]
    torch.testing.assert_close(program.module()(*inputs), Scan()(*inputs))


def test_on_meta_it_tells_the_shapes_without_a_look_at_the_boundaries():
    u = torch.empty(1, 9, 4, device="meta", requires_grad=True)
    A, B = torch.empty(4, 2, device="meta"), torch.empty(1, 9, 2, device="meta")
    bounds = torch.empty(4, dtype=torch.long, device="meta")
    out, state = selective_scan(u, u, A, B, B, cu_seqlens=bounds, return_final_state=True)
    (grad,) = torch.autograd.grad(out.sum(), u)
    assert (out.device.type, out.shape, state.shape, grad.shape) == ("meta", (1, 9, 4), (3, 4, 2), (1, 9, 4))


@backends
def test_reverse_is_the_scan_of_the_flipped_sequence(backend):
    inputs = {name: x.detach() for name, x in ScanCase(l=37).inputs().items()}
    flipped = {name: x.flip(1) if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
    out, state = selective_scan(**inputs, delta_softplus=True, reverse=True, return_final_state=True, backend=backend)
    other, other_state = selective_scan(**flipped, delta_softplus=True, return_final_state=True, backend=backend)
    torch.testing.assert_close(out, other.flip(1))
    torch.testing.assert_close(state, other_state)


def test_one_token_at_a_time_gives_the_scan():
    case = ScanCase(l=9, groups=2)
    inputs = {name: x.detach() for name, x in case.inputs().items()}
    state = inputs.pop("initial_state").clone()
    whole, final = selective_scan(**inputs, delta_softplus=True, initial_state=state.clone(), return_final_state=True)
    for t in range(9):
        token = {name: x[:, t] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
        y = selective_state_update(state, **token, delta_softplus=True)
        assert rms_error_ratio(y, whole[:, t]) <= OUTPUT_TOLERANCE[torch.float32]
    assert rms_error_ratio(state, final) <= OUTPUT_TOLERANCE[torch.float32]


@backends
@pytest.mark.parametrize("packed", [False, True])
def test_a_nan_stays_in_its_row_or_sequence(backend, packed):
    case = ScanCase(lengths=(4, 30, 6)) if packed else ScanCase(b=3, l=34)
    poisoned = (0, slice(4, 34)) if packed else (1,)
    inputs = case.inputs()
    clean = {name: x.detach().clone() for name, x in inputs.items()}
    dirty = {name: x.clone() for name, x in clean.items()}
    for name in ("u", "delta", "B", "C", "z"):
        dirty[name][poisoned] = float("nan")
    dirty["initial_state"][1] = float("nan")
    seen = []
    for tensors in (clean, dirty):
        leaves = {name: x.requires_grad_() for name, x in tensors.items()}
        outputs = selective_scan(**leaves, **case.options(), return_final_state=True, backend=backend)
        loss = sum(y.nan_to_num().square().sum() for y in outputs)
        per_position = [leaves[name] for name in ("u", "delta", "B", "C", "z")]
        *grads, grad_state = torch.autograd.grad(loss, [*per_position, leaves["initial_state"]])
        out, state = outputs
        seen.append([(poisoned, x) for x in (out, *grads)] + [((1,), x) for x in (state, grad_state)])
    for (where, x), (_, y) in zip(*seen, strict=True):
        rest = torch.ones(x.shape[:2] if x.shape[0] == 1 else x.shape[:1], dtype=torch.bool)
        rest[where] = False
        torch.testing.assert_close(x[rest], y[rest], rtol=0, atol=0)
        assert y[~rest].isnan().any()


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_the_rounded_float32_result(backend, dtype):
    case = ScanCase(l=40)
    results = []
    for width in (dtype, torch.float32):
        inputs = {name: x.detach().to(width).requires_grad_() for name, x in case.inputs(dtype).items()}
        out, state = selective_scan(**inputs, delta_softplus=True, return_final_state=True, backend=backend)
        assert out.dtype == width
        assert state.dtype == torch.float32
        cotangent = torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype).to(width)
        grads = torch.autograd.grad((out, state), list(inputs.values()), (cotangent, torch.ones_like(state)))
        assert all(grad.dtype == width for grad in grads)
        results.append((out, *grads))
    for half, wide in zip(*results, strict=True):
        assert ulps_apart(half, wide.to(dtype)) <= 1


@backends
def test_mixed_dtypes_compute_in_the_widest_that_counts(backend):
    inputs = ScanCase().inputs()
    halves = {name: x.detach().bfloat16() if name in ("u", "B", "z") else x.detach() for name, x in inputs.items()}
    out, state = selective_scan(**halves, return_final_state=True, backend=backend)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    wide, state = selective_scan(**halves | {"A": halves["A"].double()}, return_final_state=True, backend=backend)
    assert (wide.dtype, state.dtype) == (torch.bfloat16, torch.float64)
    assert ulps_apart(wide, out) <= 1


@backends
def test_any_strides(backend):
    inputs = {name: x.detach() for name, x in ScanCase(b=2, l=9, e=4).inputs().items()}
    odd = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    odd["z"] = torch.cat((inputs["z"], inputs["z"]), dim=-1)[..., 4:]
    odd["delta"] = inputs["delta"][:, :, :1].expand(2, 9, 4)
    plain = inputs | {"delta": odd["delta"].clone()}
    leaves = [{name: x.requires_grad_() for name, x in tensors.items()} for tensors in (odd, plain)]
    outputs = [selective_scan(**tensors, backend=backend) for tensors in leaves]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    grads = [torch.autograd.grad(y.sum(), list(t.values())) for y, t in zip(outputs, leaves, strict=True)]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)


def test_outputs_never_share_memory_with_inputs():
    inputs = {name: x.detach() for name, x in ScanCase(l=0).inputs().items()}
    _, state = selective_scan(**inputs, return_final_state=True)
    state.zero_()
    assert inputs["initial_state"].abs().sum() > 0


def test_rows_do_not_depend_on_how_many_stand_beside_them(monkeypatch):
    inputs = {name: x.detach() for name, x in ScanCase(b=5, l=40).inputs().items()}
    whole = selective_scan(**inputs)
    monkeypatch.setattr(chunked, "TILE", 1)
    torch.testing.assert_close(selective_scan(**inputs), whole)


class LiveMemory(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes alive at once in the tensors made under it."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        self.made = {made: size for made, size in self.made.items() if not made.expired()}
        self.peak = max(self.peak, sum(self.made.values()))
        return out


def peak_of_both_passes(backend, case):
    inputs = {name: x.detach() for name, x in case.inputs().items()}
    inputs |= {name: inputs[name].unsqueeze(2) for name in ("B", "C")}
    problem = Problem(**inputs, cu_seqlens=None, delta_softplus=True, reverse=False)
    with LiveMemory() as memory:
        out, state, checkpoints = backend.forward(problem, save=True)
        backend.backward(problem, checkpoints, out, state)
    return memory.peak


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_no_tensor_holds_a_state_for_every_position(backend):
    module = operator.BACKENDS[backend]
    short, long = (peak_of_both_passes(module, ScanCase(b=1, l=l, e=32, n=64)) for l in (1024, 2048))
    assert 0 < long - short < 1024 * 32 * 64 * 4 / 2


def test_chunked_works_on_few_rows_at_a_time():
    few, many = (peak_of_both_passes(chunked, ScanCase(b=b, l=32, e=32, n=64)) for b in (64, 128))
    assert many - few < 64 * 32 * 32 * 64 * 4 / 2


def test_gradients_of_parameters_accumulate_in_float32():
    case = ScanCase(b=1, l=4096, e=1, n=1, z=False, delta_softplus=False, initial_state=False, delta_bias=False)
    inputs = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in case.shapes().items()}
    inputs["D"].requires_grad_()
    (grad,) = torch.autograd.grad(selective_scan(**inputs).sum(), [inputs["D"]])
    assert grad.item() == 4096  # a bfloat16 sum of ones stops at 256


@backends
def test_the_forced_backend_is_the_one_that_runs(backend, pool, monkeypatch):
    ran = []
    for name in {"chunked", "reference", backend} - {"native"}:
        module = operator.BACKENDS[name]
        monkeypatch.setattr(module, "forward", lambda *a, run=module.forward, name=name: ran.append(name) or run(*a))
    inputs = ScanCase(b=2, l=20, e=128, n=32).inputs()  # enough for the native kernels to ask for threads
    selective_scan(**inputs, backend=backend)
    monkeypatch.setenv("MMM_CORE_BACKEND", backend)
    selective_scan(**inputs)
    ran += ["native"] * len(pool.calls)
    assert ran == [backend, backend]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"B": (2, 16, 64)},
            ShapeError,
            "selective_scan: `B` must be (b, l, n) = (2, 64, 16), got (2, 16, 64). "
            "If it is (b, n, l), pass B.transpose(1, 2).",
        ),
        ({"u": ()}, ShapeError, "selective_scan: `u` must be (b, l, e), got ()."),
        ({"u": (64, 8)}, ShapeError, "selective_scan: `u` must be (b, l, e), got (64, 8)."),
        ({"delta": (2, 64, 1)}, ShapeError, "selective_scan: `delta` must be (b, l, e) = (2, 64, 8), got (2, 64, 1)."),
        ({"A": (8,)}, ShapeError, "selective_scan: `A` must be (e, n) with e = 8 and n >= 1, got (8,)."),
        ({"A": (8, 0)}, ShapeError, "selective_scan: `A` must be (e, n) with e = 8 and n >= 1, got (8, 0)."),
        ({"D": (1,)}, ShapeError, "selective_scan: `D` must be (e,) = (8,), got (1,)."),
        ({"z": (2, 64, 4)}, ShapeError, "selective_scan: `z` must be (b, l, e) = (2, 64, 8), got (2, 64, 4)."),
        (
            {"C": (2, 64, 2, 16)},
            ShapeError,
            "selective_scan: `B` and `C` must have the same shape, got (2, 64, 16) and (2, 64, 2, 16).",
        ),
        (
            {"B": (2, 64, 3, 16), "C": (2, 64, 3, 16)},
            ShapeError,
            "selective_scan: e = 8 must be divisible by the g = 3 groups of `B`.",
        ),
        (
            {"initial_state": (1, 8, 16)},
            ShapeError,
            "selective_scan: `initial_state` must be (b, e, n) = (2, 8, 16), got (1, 8, 16).",
        ),
    ],
)
def test_a_wrong_shape_is_named(change, error, text):
    case = ScanCase(b=2, l=64, e=8, n=16)
    inputs = case.inputs() | {name: torch.zeros(shape) for name, shape in change.items()}
    with pytest.raises(error) as raised:
        selective_scan(**inputs)
    assert str(raised.value) == text


def test_a_wrong_dtype_or_device_is_named():
    inputs = ScanCase().inputs()
    with pytest.raises(TypeError) as raised:
        selective_scan(**inputs | {"u": inputs["u"].long()})
    assert str(raised.value) == (
        "selective_scan: `u` must be float16, bfloat16, float32 or float64, got torch.int64. Pass u.float()."
    )
    with pytest.raises(TypeError, match=r"got torch\.float8_e4m3fn"):
        selective_scan(**inputs | {"u": inputs["u"].to(torch.float8_e4m3fn)})
    with pytest.raises(ValueError, match="`D` must be on the device") as raised:
        selective_scan(**inputs | {"D": inputs["D"].to("meta")})
    assert str(raised.value) == (
        "selective_scan: `D` must be on the device of `u` = cpu, got meta. Pass D.to(u.device)."
    )


@pytest.mark.parametrize(
    ("cu_seqlens", "b", "error", "text"),
    [
        ([0, 5, 3, 17], 1, ShapeError, "must rise from 0 to l = 17, got 3 after 5. It holds"),
        ([0, 5], 1, ShapeError, "must rise from 0 to l = 17, got from 0 to 5. It holds"),
        ([1, 17], 1, ShapeError, "must rise from 0 to l = 17, got from 1 to 17. It holds"),
        ([0, 17], 2, ShapeError, "needs b = 1, got b = 2. Pack the rows into one."),
        ([[0, 17]], 1, ShapeError, "must be (k+1,) with a zero first, got (1, 2)."),
        ([0.0, 17.0], 1, TypeError, "must be int32 or int64, got torch.float32."),
    ],
)
def test_wrong_boundaries_are_named(cu_seqlens, b, error, text):
    inputs = ScanCase(b=b, initial_state=False).inputs()
    with pytest.raises(error) as raised:
        selective_scan(**inputs, cu_seqlens=torch.tensor(cu_seqlens))
    assert str(raised.value).startswith(f"selective_scan: `cu_seqlens` {text}")


def test_boundaries_that_are_no_tensor_or_elsewhere_are_named():
    inputs = ScanCase(b=1, initial_state=False).inputs()
    with pytest.raises(TypeError) as raised:
        selective_scan(**inputs, cu_seqlens=[0, 17])
    assert str(raised.value) == (
        "selective_scan: `cu_seqlens` must be a tensor, got list. Pass torch.tensor(cu_seqlens)."
    )
    with pytest.raises(ValueError, match="on cpu or on the device of `u` = cpu, got meta"):
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 17], device="meta"))


def test_packed_states_are_counted_in_sequences():
    inputs = ScanCase(lengths=(9, 8)).inputs()
    inputs["initial_state"] = inputs["initial_state"][:1]
    with pytest.raises(ShapeError) as raised:
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 9, 17]))
    assert str(raised.value) == "selective_scan: `initial_state` must be (k, e, n) = (2, 6, 3), got (1, 6, 3)."


def test_a_call_traced_without_gradients_says_so():
    inputs = [x.detach() for x in ScanCase(groups=1).inputs().values()]
    out, *_ = torch.ops.mmm_core.selective_scan(
        inputs[0].requires_grad_(), *inputs[1:], None, True, False, False, "chunked"
    )
    with pytest.raises(RuntimeError, match="the call was traced with gradients off"):
        out.sum().backward()


def token_of(inputs):
    first = {name: x[:, 0] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
    return {name: x.detach().requires_grad_() for name, x in first.items()}


def test_a_step_compiles_and_records_no_gradient():
    token = token_of(ScanCase(l=1).inputs())
    state = token.pop("initial_state").detach()
    other = state.clone()
    y = torch.compile(selective_state_update, fullgraph=True, backend="aot_eager")(other, **token)
    assert torch.equal(y, selective_state_update(state, **token))
    assert torch.equal(other, state)
    assert not y.requires_grad
    assert not state.requires_grad


def test_a_step_names_itself(monkeypatch):
    token = token_of(ScanCase(l=1).inputs())
    state = token.pop("initial_state").detach()
    monkeypatch.setenv("MMM_CORE_BACKEND", "triton")
    with pytest.raises(BackendUnavailable, match="selective_state_update: backend 'triton' cannot run"):
        selective_state_update(state, **token)


def test_a_step_names_its_own_arguments():
    token = token_of(ScanCase(l=1).inputs())
    state = token.pop("initial_state")
    with pytest.raises(ShapeError) as raised:
        selective_state_update(state[:1], **token)
    assert str(raised.value) == "selective_state_update: `state` must be (b, e, n) = (2, 6, 3), got (1, 6, 3)."
