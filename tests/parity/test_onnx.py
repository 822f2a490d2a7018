"""ONNX: what torch.onnx makes of our layers gives the same numbers in onnxruntime, for every length."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import mmm_fusion
from mmm_block import MultiModalMamba, MultiModalMambaBlock
from mmm_core import BiMamba, Mamba, MambaState, causal_conv1d, selective_scan
from mmm_core.export import decompositions
from mmm_core.testing import Case, ConvCase, ScanCase

# The warnings are torch's own.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
LENGTHS = (1, 17, 130)
BATCH, BATCH_AND_LENGTH = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


class Call:
    """The arguments of one call of a module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class Exported:
    """A module in onnxruntime, exported as a user does it: with no line about mmm-core."""

    def __init__(self, module: torch.nn.Module | torch.export.ExportedProgram, call: Call, dynamic: Any) -> None:
        if isinstance(module, torch.nn.Module):
            module.eval()
        program = torch.onnx.export(
            module, call.args, kwargs=call.kwargs, dynamo=True, dynamic_shapes=dynamic, verbose=False
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)

    def __call__(self, call: Call) -> list[torch.Tensor]:
        names = [each.name for each in self.session.get_inputs()]
        arrays = [x.detach().numpy() for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, torch.Tensor)]
        return [torch.from_numpy(y) for y in self.session.run(None, dict(zip(names, arrays, strict=True)))]


def assert_same(module: torch.nn.Module, exported: Exported, call: Call, real: Any = ...) -> None:
    """Every output is the same to 1e-4, where `real` says that it counts."""
    with torch.no_grad():
        expected = [y for y in tree_leaves(module(*call.args, **call.kwargs)) if isinstance(y, torch.Tensor)]
    for y, ours in zip(exported(call), expected, strict=True):
        torch.testing.assert_close(y[real], ours[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        Mamba(16),
        Mamba(16, selection_norm=1e-6),
        Mamba(16, selection_norm=1e-6, selection_norm_weight=True, bias=True, conv_bias=False, d_conv=2),
        BiMamba(16),
    ],
    ids=["mamba", "falcon-mamba", "jamba", "bimamba"],
)
def test_a_layer(layer: torch.nn.Module) -> None:
    exported = Exported(layer, Call(torch.randn(2, 7, 16)), (BATCH_AND_LENGTH,))
    for l in LENGTHS:
        assert_same(layer, exported, Call(torch.randn(3, l, 16)))


def test_a_text_and_its_continuation_and_steps() -> None:
    layer, x = Mamba(16), torch.randn(2, 40, 16)
    state = MambaState(torch.zeros(2, 32, 3), torch.zeros(2, 32, 16))
    dynamic = {"x": BATCH_AND_LENGTH, "state": MambaState(BATCH, BATCH), "return_state": None}
    any_length = Exported(layer, Call(torch.randn(2, 5, 16), state, return_state=True), dynamic)
    one_token = Exported(layer, Call(torch.randn(2, 1, 16), state, return_state=True), dynamic | {"x": BATCH})
    ys = []
    for exported, start, stop in (
        (any_length, 0, 17),
        (any_length, 17, 30),
        *((one_token, t, t + 1) for t in range(30, 40)),
    ):
        call = Call(x[:, start:stop], state, return_state=True)
        assert_same(layer, exported, call)
        y, *tensors = exported(call)
        ys.append(y)
        state = MambaState(*tensors)
    torch.testing.assert_close(torch.cat(ys, dim=1), layer(x).detach(), rtol=1e-4, atol=1e-4)


def test_an_encoder_with_padding() -> None:
    layer = BiMamba(16)
    masks = [torch.rand(3, l) < 0.6 for l in LENGTHS]
    call = Call(torch.randn(2, 7, 16), mask=torch.rand(2, 7) < 0.6)
    exported = Exported(layer, call, {"x": BATCH_AND_LENGTH, "mask": BATCH_AND_LENGTH})
    for mask in masks:
        assert_same(layer, exported, Call(torch.randn(*mask.shape, 16), mask=mask), mask)


@pytest.mark.parametrize("layer", [Mamba(16), BiMamba(16)], ids=["mamba", "bimamba"])
def test_packed_texts(layer: torch.nn.Module) -> None:
    call = Call(torch.randn(1, 7, 16), cu_seqlens=torch.tensor([0, 3, 7]))
    exported = Exported(layer, call, {"x": {1: Dim.DYNAMIC}, "cu_seqlens": {0: Dim.DYNAMIC}})
    for bounds in ([0, 4, 4, 9, 30], [0, 1, 5, 6]):
        assert_same(layer, exported, Call(torch.randn(1, bounds[-1], 16), cu_seqlens=torch.tensor(bounds)))


class Operation(torch.nn.Module):
    """An operation with every option that a case has."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.function = selective_scan if isinstance(case, ScanCase) else causal_conv1d
        self.options = {name: x for name, x in case.options().items() if name != "cu_seqlens"}

    def forward(self, tensors: dict[str, torch.Tensor]) -> Any:
        return self.function(**tensors, **self.options, return_final_state=True)  # type: ignore[operator]


@pytest.mark.parametrize(
    "case",
    [
        ScanCase(),
        ScanCase(groups=2, reverse=True, z=False),
        ScanCase(lengths=(0, 3, 8, 0), groups=3, reverse=True),
        ScanCase(D=False, z=False, delta_bias=False, initial_state=False, delta_softplus=False),
        ConvCase(),
        ConvCase(reverse=True, bias=False, activation=None),
        ConvCase(lengths=(0, 3, 8, 1), reverse=True),
        ConvCase(lengths=(5, 2), initial_state=False, k=1),
    ],
    ids=str,
)
def test_every_option_of_the_operations(case: Case) -> None:
    tensors = {name: x.detach() for name, x in case.inputs().items()}
    tensors |= {name: x for name, x in case.options().items() if name == "cu_seqlens"}
    module, call = Operation(case), Call(tensors=tensors)
    assert_same(module, Exported(module, call, None), call)


METHODS = [(method.name, False) for method in mmm_fusion.available()]
MASKED = [(name, True) for name in ("mlp", "cross_attention", "state", "cross_mamba")]


@pytest.mark.parametrize(("method", "masked"), METHODS + MASKED)
def test_the_block(method: str, masked: bool) -> None:
    block = MultiModalMambaBlock(16, 2, 0.1, 2, 4, (16, 24), 8, 24, 1, 2, fusion_method=method).eval()

    def call(b: int, l: int) -> Call:
        masks = {"text_mask": torch.rand(b, l) < 0.7, "image_mask": torch.rand(b, 6) < 0.7}
        return Call(torch.randn(b, l, 16), torch.randn(b, 3, 16, 24), **(masks if masked else {}))

    dynamic = {"text": BATCH_AND_LENGTH, "image": BATCH}
    dynamic |= {"text_mask": BATCH_AND_LENGTH, "image_mask": BATCH} if masked else {}
    exported = Exported(block, call(2, 5), dynamic)
    for l in LENGTHS:
        given = call(3, l)
        assert_same(block, exported, given, block.fuse(*given.args, **given.kwargs).mask if masked else ...)


@pytest.mark.parametrize(
    ("method", "images"), [("mlp", False), ("mlp", True), ("cross_attention", True), ("state", True)]
)
def test_the_model(method: str, images: bool) -> None:
    sizes = {"image_size": (16, 24), "patch_size": 8, "encoder_dim": 24, "encoder_depth": 1, "encoder_heads": 2}
    model = MultiModalMamba(
        vocab_size=32, dim=16, depth=2, heads=2, image_token_id=3, pad_token_id=0, fusion_method=method, **sizes
    )
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.5)

    def call(b: int, l: int) -> Call:
        """Padding in the first row; of the images one in the second row, and two in the last where there is room."""
        ids, mask = torch.randint(4, 32, (b, l)), torch.ones(b, l, dtype=torch.bool)
        mask[0, : l // 3] = False
        if images:
            ids[1, l // 2] = ids[-1, 0] = ids[-1, l // 4] = 3
        pixels = (torch.randn(int((ids == 3).sum()), 3, 16, 24),) if images else ()
        return Call(ids, *pixels, attention_mask=mask)

    dynamic = {"input_ids": BATCH_AND_LENGTH} | ({"images": BATCH} if images else {})
    exported = Exported(model, call(3, 7), dynamic | {"attention_mask": BATCH_AND_LENGTH})
    for l in LENGTHS:
        given = call(4, l)
        assert_same(model, exported, given, given.kwargs["attention_mask"])


def test_a_program_that_was_taken_apart_before() -> None:
    layer = Mamba(16)
    program = torch.export.export(layer, (torch.randn(2, 7, 16),)).run_decompositions(decompositions())
    with torch.no_grad():
        exported = Exported(program, Call(torch.randn(2, 7, 16)), None)
    assert_same(layer, exported, Call(torch.randn(2, 7, 16)))
