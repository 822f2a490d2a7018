"""Our model as transformers calls it: the same numbers in every form of a call."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from mmm_block import InputError, MultiModalMamba
from mmm_block.transformers import MultiModalMambaCache
from mmm_core.testing import rms_error_ratio

TOLERANCE = 1e-5
LENGTHS = [9, 5, 8]  # of the prompts
IMAGES = [slice(0, 2), slice(2, 2), slice(2, 3)]


def close(a, b):
    return rms_error_ratio(a, b) <= TOLERANCE


def alone(prompts, row):
    """One of the prompts without its padding."""
    ids, pixels = prompts["input_ids"][row : row + 1, -LENGTHS[row] :], prompts["pixel_values"][IMAGES[row]]
    return {"input_ids": ids} | ({"pixel_values": pixels} if len(pixels) else {})


def test_it_is_our_model(ours, prompts):
    model = MultiModalMamba(ours.config.own())
    model.load_state_dict(ours.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in ours.named_parameters()]
    expected = model(prompts["input_ids"], prompts["pixel_values"], attention_mask=prompts["attention_mask"])
    assert ours(**prompts).logits.equal(expected.logits)
    assert isinstance(ours.core, MultiModalMamba)
    assert all(one is other for one, other in zip(ours.core.parameters(), ours.parameters(), strict=True))


def test_a_row_is_what_it_is_alone(ours, prompts):
    logits = ours(**prompts).logits
    for row in range(3):
        assert close(logits[row : row + 1, -LENGTHS[row] :], ours(**alone(prompts, row)).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(ours, prompts, side):
    text = alone(prompts, 0)
    ids, mask = text["input_ids"], torch.ones(1, 9)
    pad = (3, 0) if side == "left" else (0, 3)
    padded = {**text, "input_ids": nn.functional.pad(ids, pad), "attention_mask": nn.functional.pad(mask, pad)}
    logits = ours(**padded).logits
    assert close(logits[:, 3:] if side == "left" else logits[:, :-3], ours(**text).logits)


def test_text_alone(build_ours):
    model = build_ours(image_size=None, image_token_id=None)
    ids = torch.randint(4, 40, (2, 6))
    assert close(model(ids).logits[1:], model(ids[1:]).logits)
    with pytest.raises(InputError, match="`images` must be None in a model without an encoder"):
        model(ids, pixel_values=torch.randn(2, 3, 16, 16))


def test_one_image_before_each_row(build_ours):
    model = build_ours(image_token_id=None)
    ids, pixels = torch.randint(4, 40, (2, 6)), torch.randn(2, 3, 16, 16)
    assert close(model(ids, pixel_values=pixels).logits[1:], model(ids[1:], pixel_values=pixels[1:]).logits)


def test_a_tuple_holds_the_same(ours, prompts):
    output = ours(**prompts, labels=prompts["input_ids"])
    loss, logits, cache = ours(**prompts, labels=prompts["input_ids"], return_dict=False)
    assert loss.equal(output.loss)
    assert logits.equal(output.logits)
    assert isinstance(cache, MultiModalMambaCache)
    ours.config.return_dict = False
    assert isinstance(ours(**prompts), tuple)


def test_logits_to_keep(ours, prompts):
    whole = ours(**prompts).logits
    for keep, kept in ((0, slice(None)), (1, slice(-1, None)), (4, slice(-4, None)), (torch.tensor([2, 8]), [2, 8])):
        assert close(ours(**prompts, logits_to_keep=keep).logits, whole[:, kept])
        labelled = ours(**prompts, labels=prompts["input_ids"], logits_to_keep=keep)
        assert labelled.logits.equal(whole[:, kept])
        assert labelled.loss.equal(ours(**prompts, labels=prompts["input_ids"]).loss)


def test_one_kept_logit_is_that_of_the_last_real_token(ours, prompts):
    text = alone(prompts, 0)
    padded = {**text, "input_ids": nn.functional.pad(text["input_ids"], (0, 2))}
    mask = nn.functional.pad(torch.ones(1, 9), (0, 2))
    kept = ours(**padded, attention_mask=mask, logits_to_keep=1).logits
    assert close(kept, ours(**text).logits[:, -1:])


def test_loss(ours, prompts):
    labels = torch.where(torch.rand(3, 9) < 0.5, -100, prompts["input_ids"])
    labels[0, 4] = 7
    expected = ours.core(
        prompts["input_ids"], prompts["pixel_values"], attention_mask=prompts["attention_mask"], labels=labels
    ).loss
    assert ours(**prompts, labels=labels).loss.equal(expected)


def test_the_loss_of_two_batches_is_that_of_one(ours, prompts):
    ids = prompts["input_ids"]
    labels = torch.where((ids == 0) | (ids == 3), -100, ids)
    labels[:, 0] = -100
    labels[1, 4] = labels[2, 1] = -100  # the first of a text
    count = (labels != -100).sum()
    parts = [
        ours(**alone(prompts, row), labels=labels[row : row + 1, -LENGTHS[row] :], num_items_in_batch=count).loss
        for row in range(3)
    ]
    assert close(sum(parts), ours(**prompts, labels=labels).loss)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cuts", [[1], [5], [2, 3, 7], list(range(1, 9))], ids=str)
def test_a_text_in_pieces(ours, prompts, cuts, grad):
    """Images come with the piece that has their marks; the mask may tell of the whole text."""
    text = alone(prompts, 0)
    ids, pixels = text["input_ids"], text["pixel_values"]
    whole = ours(**text).logits
    cache, parts, seen = None, [], 0
    with torch.set_grad_enabled(grad):
        for start, end in zip([0, *cuts], [*cuts, 9], strict=True):
            piece = ids[:, start:end]
            marks = int((piece == 3).sum())
            images = {"pixel_values": pixels[seen : seen + marks]} if marks else {}
            mask = {"attention_mask": torch.ones(1, end)} if end % 2 else {}
            output = ours(piece, cache=cache, use_cache=True, **images, **mask)
            cache, seen = output.cache, seen + marks
            assert cache.get_seq_length() == end
            parts.append(output.logits)
    assert close(torch.cat(parts, dim=1), whole)
    assert parts[-1].requires_grad == grad


def test_padding_behind_what_was_read(ours, prompts):
    """Padding in a later piece, and a mask that tells of padding in the first one too."""
    ids, mask = prompts["input_ids"], prompts["attention_mask"].clone()
    mask[0, 7] = 0
    whole = ours(ids, attention_mask=mask, pixel_values=prompts["pixel_values"]).logits
    first = ours(ids[:, :6], attention_mask=mask[:, :6], pixel_values=prompts["pixel_values"][:1])
    second = ours(ids[:, 6:], attention_mask=mask, pixel_values=prompts["pixel_values"][1:], cache=first.cache)
    real = mask[:, 6:].bool()
    assert close(second.logits[real], whole[:, 6:][real])


def test_a_clone_of_a_cache_goes_its_own_way(ours, prompts):
    cache = ours(**prompts).cache
    copied, next_ids = cache.clone(), torch.randint(4, 40, (3, 1))
    with torch.no_grad():
        first = ours(next_ids, cache=cache).logits
        assert close(ours(next_ids, cache=copied).logits, first)
        assert not close(ours(next_ids, cache=cache).logits, first)
    assert MultiModalMambaCache().clone().state is None


def test_when_a_cache_is_returned(ours, prompts):
    assert ours(**prompts).cache is not None
    assert ours(**prompts, use_cache=False).cache is None
    ours.config.use_cache = False
    assert ours(**prompts).cache is None
    ours.config.use_cache = True
    ours.train()
    assert ours(**prompts).cache is None
    assert ours(**prompts, use_cache=True).cache is not None


def test_every_parameter_learns(ours, prompts):
    ours.train()
    ours(**prompts, labels=prompts["input_ids"]).loss.backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing(ours, prompts):
    def gradients():
        ours.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = ours(**prompts, labels=prompts["input_ids"]).loss
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in ours.parameters()], sum(saved)

    ours.train()
    loss, expected, size = gradients()
    ours.activation_checkpointing_enable()
    assert ours.is_gradient_checkpointing
    checkpointed, got, smaller = gradients()
    assert close(checkpointed, loss)
    assert all(rms_error_ratio(one, other) <= 5e-6 for one, other in zip(got, expected, strict=True))
    assert smaller < 0.8 * size
    ours.activation_checkpointing_disable()
    assert not ours.is_gradient_checkpointing
    assert gradients()[2] == size


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "{'use_reentrant': True} for every 1"),
        ({"every_n_layers": 2}, "{'use_reentrant': False} for every 2"),
        ({"offload": True}, "{'use_reentrant': False} for every 1"),
    ],
)
def test_other_kinds_of_gradient_checkpointing(ours, options, got):
    message = (
        "MultiModalMambaForConditionalGeneration: gradient checkpointing must be that of every layer, with "
        f"use_reentrant=False and without offload, got {got}. Leave the options out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ours.activation_checkpointing_enable(**options)
    assert not ours.is_gradient_checkpointing


@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens_and_fewer(build_ours, prompts, tied):
    model = build_ours(tie_embeddings=tied)
    before = model(**prompts).logits
    for size in (45, 40):
        model.resize_token_embeddings(size)
        assert model.config.vocab_size == model.core.config.vocab_size == size
        assert (model.lm_head.weight is model.embedding.weight) == tied
        logits = model(**prompts).logits
        assert logits.shape == (3, 9, size)
        assert close(logits[..., :40], before)
    model.resize_token_embeddings(45)
    model(torch.tensor([[44]]))
    with pytest.raises(InputError, match="`input_ids` must be from 0 to below vocab_size = 45, got 45"):
        model(torch.tensor([[45]]))


def test_other_modules_in_their_places(ours, prompts):
    embedding, head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
    ours.set_input_embeddings(embedding)
    ours.set_output_embeddings(head)
    assert (ours.get_input_embeddings(), ours.get_output_embeddings()) == (embedding, head)
    ours(**prompts).logits.sum().backward()
    assert embedding.weight.grad is not None
    assert head.weight.grad is not None


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_stand_alone(ours, prompts, copied):
    logits = ours(**prompts).logits
    other = copied(ours)
    assert other(**prompts).logits.equal(logits)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert other(**prompts).logits.equal(logits)
    other.set_output_embeddings(nn.Linear(16, 7))
    assert other(**prompts).logits.shape == (3, 9, 7)
    assert ours(**prompts).logits.shape == (3, 9, 40)


def test_what_it_does_not_take(ours):
    name = "MultiModalMambaForConditionalGeneration: `input_ids` and no more were expected, got "
    with pytest.raises(InputError, match=f"^{name}none"):
        ours()
    with pytest.raises(InputError, match=f"^{name}inputs_embeds, output_attentions"):
        ours(torch.ones(1, 2, dtype=torch.long), inputs_embeds=torch.randn(1, 2, 16), output_attentions=True)
    ours(torch.ones(1, 2, dtype=torch.long), inputs_embeds=None, output_attentions=False)


def test_it_is_compiled(build_ours, prompts):
    model, real = build_ours(depth=1), prompts["attention_mask"].bool()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert close(compiled(**prompts, use_cache=False).logits[real], model(**prompts).logits[real])
