"""The block compiled and exported: with every fusion method one graph, for any batch and any length of text."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import mmm_fusion
from mmm_block import MultiModalMambaBlock
from mmm_core.export import decompositions

methods = pytest.mark.parametrize("method", [method.name for method in mmm_fusion.available()])
BATCH, BATCH_AND_LENGTH = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
LENGTHS = (5, 9, 33, 2, 130)


def small(method):
    return MultiModalMambaBlock(
        dim=16,
        depth=2,
        dropout=0.0,
        heads=2,
        d_state=4,
        image_size=(16, 24),
        patch_size=8,
        encoder_dim=24,
        encoder_depth=1,
        encoder_heads=2,
        fusion_method=method,
    ).eval()


def a_batch(b, l):
    """Text, images, and the masks of both."""
    text_mask, image_mask = torch.rand(b, l) < 0.7, torch.rand(b, 6) < 0.7
    return torch.randn(b, l, 16), torch.randn(b, 3, 16, 24), {"text_mask": text_mask, "image_mask": image_mask}


@methods
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_exports_with_any_batch_and_length(method, masked):
    block = small(method)
    text, image, masks = a_batch(2, 5)
    dynamic = {"text": BATCH_AND_LENGTH, "image": BATCH}
    if masked:
        dynamic |= {"text_mask": BATCH_AND_LENGTH, "image_mask": BATCH}
    program = torch.export.export(block, (text, image), masks if masked else {}, dynamic_shapes=dynamic)
    for b, l in ((1, 1), (3, 17)):
        text, image, masks = a_batch(b, l)
        masks = masks if masked else {}
        actual, expected = (f(text, image, **masks) for f in (program.module(), block))
        real = block.fuse(text, image, **masks).mask if masked else torch.ones(actual.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(actual[real], expected[real])


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")  # torch's own, both
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_goes_without_our_operators():
    block = small("state")
    dynamic = {"text": BATCH_AND_LENGTH, "image": BATCH}
    program = torch.export.export(block, a_batch(2, 5)[:2], dynamic_shapes=dynamic)
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "mmm_core" in str(node.target)]
    text, image, _ = a_batch(3, 17)
    torch.testing.assert_close(program.module()(text, image), block(text, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mlp", "cross_attention", "state", "cross_mamba"])
def test_trains_in_one_graph_for_every_length(method):
    block = small(method).train()
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    parameters = list(block.parameters())
    for l in LENGTHS:
        text, image, _ = a_batch(2, l)
        actual, expected = (torch.autograd.grad(f(text, image).square().mean(), parameters) for f in (compiled, block))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert counter.frame_count == 2  # for the first length, and for every other
