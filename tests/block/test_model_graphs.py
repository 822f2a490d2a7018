"""`torch.compile` and `torch.export` of the model: one graph, for any batch and length."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

MARK = 3
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()


def batch(b, l, images=True):
    """Ragged rows, the first of them with two images, and one in the last."""
    generator = torch.Generator().manual_seed(b * l)
    ids, mask = torch.randint(4, 29, (b, l), generator=generator), torch.ones(b, l, dtype=torch.bool)
    mask[1, :2] = False
    if images:
        ids[0, 0] = ids[0, 2] = ids[-1, 1 if b < 2 else 2] = MARK
    return ids, torch.randn(int((ids == MARK).sum()), 3, 16, 24, generator=generator) if images else None, mask


def training_step(call, model, ids, images, mask):
    model.zero_grad()
    out = call(ids, images, attention_mask=mask, labels=ids.masked_fill(~mask, -100))
    out.loss.backward()
    return out.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", ["mlp", "concat"])
def test_a_training_step_is_one_graph_for_any_batch_and_length(small, method):
    model = small(fusion_method=method).train()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for number, (b, l) in enumerate(((2, 5), (3, 7), (5, 11))):
        loss, found = training_step(compiled, model, *batch(b, l))
        if number == 0:
            compiled_then = graphs.frame_count
        expected, gradients = training_step(model, model, *batch(b, l))
        torch.testing.assert_close(loss, expected, **CLOSE)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, **CLOSE, msg=name)
    assert graphs.frame_count == compiled_then


def test_a_training_step_with_checkpointing(small):
    model = small().train()
    model.checkpointing = True
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for b, l in ((2, 6), (3, 5)):  # the second makes the sizes dynamic
        loss, found = training_step(compiled, model, *batch(b, l))
        expected, gradients = training_step(model, model, *batch(b, l))
        torch.testing.assert_close(loss, expected, **CLOSE)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, **CLOSE, msg=name)


@pytest.mark.parametrize("method", [None, "mlp", "concat", "cross_mamba"])
def test_a_step_is_compiled_once_however_much_was_read(small, method):
    model = small(fusion_method=method) if method else small(image_size=None, image_token_id=None)
    graphs = CompileCounterWithBackend("eager")
    step = torch.compile(model.step, fullgraph=True, backend=graphs)
    for l in (4, 9, 30):
        ids, images, _ = batch(2, l, images=method is not None)
        with torch.no_grad():
            state = model(ids, images, return_state=True).state
        expected = state.clone()
        for token in (torch.tensor([5, 6]), torch.tensor([7, 8]), torch.tensor([9, 10])):
            torch.testing.assert_close(step(token, state), model.step(token, expected), **CLOSE)
        torch.testing.assert_close(state.layers[1].ssm, expected.layers[1].ssm, **CLOSE)
        assert torch.equal(state.length, expected.length)
    assert graphs.frame_count == 1


def test_a_step_is_compiled_once_more_for_other_numbers_of_rows(small):
    model, graphs = small(), CompileCounterWithBackend("eager")
    step = torch.compile(model.step, fullgraph=True, backend=graphs)
    for b in (2, 3, 5, 4):
        ids = torch.tensor([[5, MARK, 7]] * b)
        with torch.no_grad():
            state = model(ids, torch.randn(b, 3, 16, 24), return_state=True).state
        expected, token = state.clone(), torch.arange(5, 5 + b)
        torch.testing.assert_close(step(token, state), model.step(token, expected), **CLOSE)
    assert graphs.frame_count == 2


@pytest.mark.parametrize("images", [True, False])
def test_a_step_of_a_stack_is_compiled_once(small, images):
    stack = small(**({} if images else {"image_size": None, "image_token_id": None})).backbone
    graphs = CompileCounterWithBackend("eager")
    step = torch.compile(stack.step, fullgraph=True, backend=graphs)
    for l in (1, 6, 20):
        x = torch.randn(2, l + 2, 16)
        with torch.no_grad():
            whole, _ = stack.run(x)
            _, states = stack.run(x[:, :l])
        for place in (l, l + 1):
            torch.testing.assert_close(step(x[:, place].contiguous(), states), whole[:, place], **CLOSE)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("method", ["mlp", "concat", "visual_expert", "cross_mamba"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_an_exported_program_serves_any_batch_length_and_number_of_images(small, method, images, masked):
    model = small(fusion_method=method)

    def arguments(b, l):
        ids, pixels, mask = batch(b, l, images)
        return (ids, pixels) if images else (ids,), {"attention_mask": mask} if masked else {}

    free = {0: Dim.AUTO, 1: Dim.AUTO}
    shapes = {"input_ids": free} | ({"images": {0: Dim.AUTO}} if images else {})
    program = export(model, *arguments(3, 7), dynamic_shapes=shapes | ({"attention_mask": free} if masked else {}))
    for b, l in ((2, 4), (5, 11)):
        positional, named = arguments(b, l)
        mask = named.get("attention_mask", torch.ones(b, l, dtype=torch.bool))
        found = program.module()(*positional, **named).logits
        torch.testing.assert_close(found[mask], model(*positional, **named).logits[mask], **CLOSE)
