"""The `BiMamba` layer: against two flipped `Mamba` layers, with padding and packed, and its errors."""

import pytest
import torch

from mmm_core import BiMamba, Mamba, ShapeError, init_ssm
from mmm_core.testing import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, rms_error_ratio

OPTIONS = [
    {},
    {"d_state": 5, "d_conv": 2, "expand": 3, "dt_rank": 7},
    {"bias": True, "conv_bias": False, "d_state": 1, "d_conv": 1},
]
OF_THE_REVERSE = {"conv1d": "conv1d_b", "x_proj": "x_proj_b", "dt_proj": "dt_proj_b", "A_log": "A_b_log", "D": "D_b"}
options = pytest.mark.parametrize("options", OPTIONS)


def random(layer):
    """The layer with no two parameters of its directions alike."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def by_flipping(layer, x, **options):
    """The layer as the mean of two that read from left to right, one of them a flipped text."""
    given = layer.state_dict()
    shared = {key: value for key, value in given.items() if key.split(".")[0] in ("in_proj", "out_proj")}
    shared["out_proj.weight"] = shared["out_proj.weight"] / 2
    if "out_proj.bias" in shared:
        shared["out_proj.bias"] = shared["out_proj.bias"] / 2
    outs = []
    for names in ({name: name for name in OF_THE_REVERSE}, OF_THE_REVERSE):
        weights = dict(shared)
        for ours, theirs in names.items():
            weights |= {
                ours + key.removeprefix(theirs): value
                for key, value in given.items()
                if key == theirs or key.startswith(f"{theirs}.")
            }
        mamba = Mamba(layer.dim, **options).to(x.dtype)
        flip = names is OF_THE_REVERSE
        y = torch.func.functional_call(mamba, weights, (x.flip(1) if flip else x,), strict=True)
        outs.append(y.flip(1) if flip else y)
    return outs[0] + outs[1]


@options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 3, 70])
@torch.no_grad()
def test_it_is_two_layers_one_of_them_flipped(options, dtype, length):
    layer, x = random(BiMamba(12, **options).to(dtype)), torch.randn(2, length, 12, dtype=dtype)
    assert rms_error_ratio(layer(x), by_flipping(layer, x, **options)) <= OUTPUT_TOLERANCE[dtype]


@options
def test_gradients_are_those_of_flipping(options):
    layer = random(BiMamba(12, **options).double())
    x = torch.randn(2, 17, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 17, 12, dtype=torch.float64)
    tensors = dict(layer.named_parameters())
    actual = torch.autograd.grad((layer(x) * weight).sum(), [x, *tensors.values()])
    layer.state_dict = lambda: tensors  # with its gradients on
    expected = torch.autograd.grad((by_flipping(layer, x, **options) * weight).sum(), [x, *tensors.values()])
    for name, ours, theirs in zip(["x", *tensors], actual, expected, strict=True):
        assert rms_error_ratio(ours, theirs) <= GRADIENT_TOLERANCE[torch.float64], name
        assert ours.any(), name


def test_it_flips_nothing(monkeypatch):
    called = []
    monkeypatch.setattr(torch.Tensor, "flip", lambda *_: called.append("flip"))
    BiMamba(8)(torch.randn(2, 5, 8)).sum().backward()
    assert not called


def test_parameters_have_the_names_and_shapes_of_vim():
    shapes = {name: tuple(p.shape) for name, p in BiMamba(40).named_parameters()}
    mamba = {name: tuple(p.shape) for name, p in Mamba(40).named_parameters()}
    added = {
        "A_b_log": (80, 16),
        "D_b": (80,),
        "conv1d_b.weight": (80, 1, 4),
        "conv1d_b.bias": (80,),
        "x_proj_b.weight": (3 + 32, 80),
        "dt_proj_b.weight": (80, 3),
        "dt_proj_b.bias": (80,),
    }
    assert shapes == mamba | added


def test_both_directions_start_as_a_mamba_does_and_undecayed():
    layer = BiMamba(64)
    torch.manual_seed(1)
    A_log, dt_proj = torch.nn.Parameter(torch.empty(128, 16)), torch.nn.Linear(4, 128)
    init_ssm(A_log, dt_proj)
    for name in ("A_log", "A_b_log"):
        torch.testing.assert_close(getattr(layer, name), A_log)
    for name in ("dt_proj", "dt_proj_b"):
        step = torch.nn.functional.softplus(getattr(layer, name).bias)
        assert 1e-3 * 0.99 <= step.min() < step.max() <= 1e-1 * 1.01
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_proj.bias", "A_b_log", "D_b", "dt_proj_b.bias"}


def test_each_token_sees_both_sides():
    layer, x = BiMamba(8), torch.randn(2, 9, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[:, 4].sum(), x)
    assert (grad != 0).any(-1).all()


MASKS = {
    "right": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
    "anywhere": [[0, 1, 0, 0, 1, 1, 0], [1, 0, 1, 1, 0, 0, 1]],
    "a row of padding": [[0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1]],
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@masks
@options
def test_padding_changes_nothing(mask, options):
    layer, x, mask = random(BiMamba(8, **options)), torch.randn(2, 7, 8), torch.tensor(mask, dtype=torch.bool)
    x[~mask] = float("nan")
    with torch.no_grad():
        y = layer(x, mask=mask)
        for row in range(2):
            torch.testing.assert_close(y[row, mask[row]], layer(x[row, mask[row]][None])[0])


@masks
def test_gradients_with_padding_are_those_of_the_rows_alone(mask):
    layer, x, mask = random(BiMamba(8, bias=True)).double(), torch.randn(2, 7, 8).double(), torch.tensor(mask).bool()
    x.requires_grad_()
    parameters = [x, *layer.parameters()]
    alone = [layer(x[row, mask[row]][None])[0] for row in range(2)]
    weight = torch.randn(int(mask.sum()), 8, dtype=torch.float64)
    expected = torch.autograd.grad((torch.cat(alone) * weight).sum(), parameters)
    actual = torch.autograd.grad((layer(x, mask=mask)[mask] * weight).sum(), parameters)
    torch.testing.assert_close(actual, expected)


def test_packed_texts_do_not_see_each_other():
    layer, x = random(BiMamba(8)), torch.randn(1, 12, 8)
    packed = layer(x, cu_seqlens=torch.tensor([0, 4, 4, 12]))
    torch.testing.assert_close(packed, torch.cat([layer(x[:, :4]), layer(x[:, 4:])], dim=1))


def test_compiles_to_one_graph_with_gradients():
    layer, x, mask = BiMamba(8), torch.randn(2, 7, 8, requires_grad=True), torch.tensor(MASKS["anywhere"]).bool()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual, expected = (
        [y, *torch.autograd.grad(y[mask].sum(), x)] for y in (compiled(x, mask=mask), layer(x, mask=mask))
    )
    torch.testing.assert_close(actual, expected)


def test_exports_with_any_batch_and_length():
    layer = BiMamba(8)
    batch, length = torch.export.Dim("b"), torch.export.Dim("l")
    dynamic = {"x": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    x, mask = torch.randn(2, 7, 8), torch.tensor(MASKS["anywhere"]).bool()
    program = torch.export.export(layer, (x,), {"mask": mask}, dynamic_shapes=dynamic)
    for shape in ((3, 5), (4, 100)):
        x, mask = torch.randn(*shape, 8), torch.rand(shape) < 0.7
        torch.testing.assert_close(program.module()(x, mask=mask)[mask], layer(x, mask=mask)[mask])


def test_bfloat16_and_autocast():
    layer, x = BiMamba(16), torch.randn(2, 7, 16)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    z = layer.bfloat16()(x.bfloat16())
    for out in (y, z):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="must be at least 1") as raised:
        BiMamba(8, expand=0)
    assert str(raised.value) == "BiMamba: `expand` must be at least 1, got 0."
    with pytest.raises(ShapeError) as raised:
        BiMamba(8)(torch.zeros(2, 8))
    assert str(raised.value) == "BiMamba: `x` must be (b, l, dim) with dim = 8, got (2, 8)."
    with pytest.raises(ShapeError) as raised:
        BiMamba(8)(torch.zeros(2, 5, 8), mask=torch.ones(2, 4).bool())
    assert str(raised.value) == "BiMamba: `mask` must be (b, l) = (2, 5), got (2, 4)."
    with pytest.raises(TypeError) as raised:
        BiMamba(8)(torch.zeros(2, 5, 8), mask=torch.ones(2, 5))
    assert str(raised.value) == "BiMamba: `mask` must be bool, True for a real token, got torch.float32."
    with pytest.raises(ValueError, match="packed") as raised:
        BiMamba(8)(torch.zeros(1, 5, 8), mask=torch.ones(1, 5).bool(), cu_seqlens=torch.tensor([0, 5]))
    assert str(raised.value) == (
        "BiMamba: `mask` must be None where texts are packed. Leave the padding out of the row."
    )


def test_padding_that_is_no_number_reaches_no_gradient():
    layer, mask = random(BiMamba(6, bias=True)), torch.tensor([[True, False, True], [False, False, True]])
    x = torch.randn(2, 3, 6).masked_fill(~mask[..., None], torch.nan).requires_grad_()
    layer(x, mask=mask)[mask].sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *layer.parameters()))
    assert not x.grad[~mask].any()
