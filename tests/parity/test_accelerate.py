"""`accelerate`: outputs, gradients, caches and texts as they are without it."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from transformers import DynamicCache, JambaForCausalLM, StaticCache

from mmm_core.compat.transformers import accelerate
from mmm_core.testing import rms_error_ratio

TOLERANCE = 1e-5
PADDING = {"none": [0, 0, 0], "left": [0, 5, 2]}
LENGTHS = [1, 2, 3, 17, 65]


def text(length, rows=3):
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(2))


def mask_of(ids, padding):
    return (torch.arange(ids.shape[1]) >= torch.tensor(padding)[:, None]).long()


def both(model, run):
    """What `run` gives without us, and with us."""
    theirs = run()
    with accelerate(model):
        return theirs, run()


def assert_equal(theirs, ours):
    assert theirs.keys() == ours.keys()
    errors = {name: rms_error_ratio(ours[name], theirs[name]) for name in theirs}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


def gradients(model, ids, **inputs):
    """The logits, the loss, and the gradient of every parameter."""
    model.zero_grad()
    out = model(ids, labels=ids, **inputs)
    out.loss.backward()
    return {"logits": out.logits.detach(), "loss": out.loss.detach(), **grads(model)}


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def memory(cache):
    """Every tensor of a cache."""
    found = {}
    for i, layer in enumerate(cache.layers):
        if hasattr(layer, "conv_states"):
            found |= {f"conv {i}": layer.conv_states[0].clone(), f"state {i}": layer.recurrent_states[0].clone()}
        else:
            found |= {f"keys {i}": layer.keys.clone(), f"values {i}": layer.values.clone()}
    return found


def in_pieces(model, ids, mask, bounds):
    """The logits of a text that is read in pieces, and the cache behind it."""
    cache, logits = DynamicCache(config=model.config), []
    for start, stop in itertools.pairwise(bounds):
        # Jamba's attention takes the mask of the whole text so far, a Mamba that of the piece.
        seen = slice(0, stop) if isinstance(model, JambaForCausalLM) else slice(start, stop)
        piece = None if mask is None else mask[:, seen]
        logits.append(model(ids[:, start:stop], attention_mask=piece, cache=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_logits_loss_and_every_gradient(model, padding, training):
    model.train(training)  # a Mamba in `eval` fills a cache, and is differentiated through it
    ids = text(17)
    theirs, ours = both(model, lambda: gradients(model, ids, attention_mask=mask_of(ids, padding)))
    assert theirs.keys() == {"logits", "loss", *(name for name, _ in model.named_parameters())}
    assert_equal(theirs, ours)


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_cache_of_a_prompt_and_of_steps(model, length):
    ids = text(length + 5)

    def run():
        logits, cache = in_pieces(model, ids, None, [0, *range(length, length + 6)])
        return {"logits": logits, **memory(cache)}

    assert_equal(*both(model, run))


@torch.no_grad()
def test_the_name_that_the_cache_had_before(build):
    mixer, x = build("mamba").backbone.layers[0].mixer, torch.randn(2, 5, 24)
    accelerate(mixer)
    whole = mixer(x)
    cache = DynamicCache(config=mixer.config)
    pieces = [mixer(piece, cache_params=cache) for piece in x.split([3, 1, 1], dim=1)]
    assert rms_error_ratio(torch.cat(pieces, dim=1), whole) <= TOLERANCE


@pytest.mark.parametrize("options", [{"conv_kernel": 1}, {"conv_kernel": 2, "use_conv_bias": False, "use_bias": True}])
@torch.no_grad()
def test_other_convolutions(build, options):
    model, ids = build("mamba", **options), text(9)

    def run():
        logits, cache = in_pieces(model, ids, None, [0, 6, 7, 8, 9])
        return {"logits": logits, **memory(cache)}

    assert_equal(*both(model, run))


@torch.no_grad()
def test_another_activation(build):
    model, ids = build("mamba", hidden_act="gelu"), text(9)
    assert_equal(*both(model, lambda: {"logits": in_pieces(model, ids, None, [0, 6, 7, 8, 9])[0]}))


@pytest.mark.parametrize("bounds", [[0, 2, 17], [0, 6, 7, 8, 12, 13, 17], [0, 7, 12, 17]])
@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
@torch.no_grad()
def test_a_text_in_pieces_is_the_whole_text(model, padding, bounds):
    ids = text(17)
    mask = mask_of(ids, padding) if any(padding) else None
    whole = model(ids, attention_mask=mask).logits
    accelerate(model)
    logits, _ = in_pieces(model, ids, mask, bounds)
    real = mask_of(ids, padding).bool()  # what stands at padding is nobody's
    assert rms_error_ratio(logits[real], whole[real]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])  # Jamba hands its layers no mask for a single token
@torch.no_grad()
def test_a_single_token_that_is_padding(build, kind):
    model, ids = build(kind), text(9)
    mask = mask_of(ids, [0, 0, 0])
    mask[1, 7] = 0

    def run():
        logits, cache = in_pieces(model, ids, mask, [0, 7, 8, 9])
        return {"logits": logits, **memory(cache)}

    assert_equal(*both(model, run))


def test_gradients_through_a_cache(model):
    ids = text(9)
    model(ids, use_cache=False).logits.square().mean().backward()
    theirs = grads(model)
    accelerate(model)
    model.zero_grad()
    logits, _ = in_pieces(model, ids, None, [0, 4, 7, 8, 9])
    logits.square().mean().backward()
    assert_equal(theirs, grads(model))


@torch.no_grad()
def test_a_cache_that_records_the_past(model):
    ids = text(9)

    def run():
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        logits = [model(piece, cache=cache, use_cache=True).logits for piece in ids.split([2, 1, 1, 1, 1, 1, 1, 1], 1)]
        return {"logits": torch.cat(logits, dim=1), **memory(cache)}

    theirs, ours = both(model, run)
    assert_equal(theirs, ours)
    assert ours["conv 0"].shape[-1] == 9


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_a_cache_changes_hands(model, first):
    ids = text(12)
    theirs, _ = in_pieces(model, ids, None, [0, *range(8, 13)])
    acceleration = accelerate(model) if first else None
    cache, logits = DynamicCache(config=model.config), []
    for t, piece in enumerate(ids.split([8, 1, 1, 1, 1], dim=1)):
        if t == 2:
            acceleration.undo() if first else accelerate(model)
        logits.append(model(piece, cache=cache, use_cache=True).logits)
    assert rms_error_ratio(torch.cat(logits, dim=1), theirs) <= TOLERANCE


@torch.no_grad()
def test_a_cache_that_is_reset(model):
    ids = text(9)
    accelerate(model)
    logits, cache = in_pieces(model, ids, None, [0, 8, 9])
    cache.reset()
    again = model(ids, cache=cache, use_cache=True).logits
    assert rms_error_ratio(again, logits) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 9}, {"use_cache": False}, {"cache_implementation": "static"}],
    ids=["greedy", "beams", "sampled", "no cache", "static cache"],
)
@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_generated_text(model, padding, options):
    ids = text(8)

    def run():
        torch.manual_seed(3)
        return model.generate(
            ids,
            attention_mask=mask_of(ids, padding),
            **{"do_sample": False, "disable_compile": True, **options},
            max_new_tokens=20,
        )

    theirs, ours = both(model, run)
    assert theirs.shape == (3, 28)
    assert theirs.equal(ours)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_bfloat16_is_no_further_from_float32(model, autocast):
    ids, mask = text(17), torch.ones(3, 17)  # of another dtype than what it masks
    exact = gradients(model, ids, attention_mask=mask)
    if not autocast:
        model.bfloat16()

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = gradients(model, ids, attention_mask=mask)
            logits, cache = in_pieces(model, ids, None, [0, 15, 16, 17])
        found["in pieces"] = logits.detach()
        return found, {name: x.dtype for name, x in {**found, **memory(cache)}.items()}

    (theirs, their_dtypes), (ours, our_dtypes) = both(model, run)
    assert our_dtypes == their_dtypes
    exact["in pieces"] = exact["logits"]
    their_errors, our_errors = (
        {name: rms_error_ratio(run[name], x) for name, x in exact.items()} for run in (theirs, ours)
    )
    for name in ("logits", "in pieces"):
        assert our_errors[name] <= 1.5 * their_errors[name]
    # One gradient's error is a matter of luck.
    assert statistics.median(our_errors.values()) <= 1.5 * statistics.median(their_errors.values())


def test_parameters_of_the_scan_in_bfloat16(model):
    ids = text(17)
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", ".D")):
            parameter.data = parameter.data.bfloat16()
    theirs, ours = both(model, lambda: gradients(model, ids))
    rounded = {name for name in theirs if theirs[name].dtype == torch.bfloat16}
    assert_equal(*({name: run[name] for name in run.keys() - rounded} for run in (theirs, ours)))
    assert rounded
    for name in rounded:
        assert rms_error_ratio(ours[name], theirs[name]) <= 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model, reentrant):
    ids = text(17)
    theirs = gradients(model.train(), ids)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    accelerate(model)
    assert_equal(theirs, gradients(model, ids))


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_compiled_training(build, kind):
    model, ids = build(kind).train(), text(17)
    theirs = gradients(model, ids)
    accelerate(model)
    model.compile(backend="aot_eager", fullgraph=True)
    assert_equal(theirs, gradients(model, ids))


@torch.no_grad()
def test_a_compiled_step(model):
    ids = text(12)
    theirs, _ = in_pieces(model, ids, None, [0, 8, 9, 10, 11, 12])
    accelerate(model)
    cache = StaticCache(config=model.config, max_cache_len=12)
    logits = [model(ids[:, :8], cache=cache, use_cache=True).logits]
    model.compile(backend="aot_eager", fullgraph=True)
    logits += [model(ids[:, t : t + 1], cache=cache, use_cache=True).logits for t in range(8, 12)]
    assert rms_error_ratio(torch.cat(logits, dim=1), theirs) <= TOLERANCE
