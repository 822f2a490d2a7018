"""transformers' `generate` with our state for a cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import TextStreamer

from mmm_block import InputError
from mmm_block.transformers import MultiModalMambaCache
from mmm_core.testing import rms_error_ratio

MARK = 3


def written(model, prompts, **options):
    """The tokens behind the prompts, with their scores."""
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, **options}
    output = model.generate(**prompts, return_dict_in_generate=True, **options)
    return output.sequences[:, prompts["input_ids"].shape[1] :], output


def row(prompts, number):
    """One of the prompts with its images."""
    images = {0: slice(0, 2), 1: slice(2, 2), 2: slice(2, 3)}[number]
    pixels = prompts["pixel_values"][images]
    return {
        "input_ids": prompts["input_ids"][number : number + 1],
        "attention_mask": prompts["attention_mask"][number : number + 1],
        **({"pixel_values": pixels} if len(pixels) else {}),
    }


def test_greedy_is_ours(ours, prompts):
    tokens, _ = written(ours, prompts)
    expected = ours.core.generate(
        prompts["input_ids"],
        prompts["pixel_values"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=6,
    )
    assert tokens.tolist() == expected.tokens.tolist()


def test_without_a_cache(ours, prompts):
    """Every step reads everything again, images too."""
    tokens, output = written(ours, prompts)
    again, without = written(ours, prompts, use_cache=False)
    assert again.tolist() == tokens.tolist()
    assert without.cache is None
    assert rms_error_ratio(torch.stack(without.logits), torch.stack(output.logits)) <= 1e-5


def test_a_row_writes_what_it_writes_alone(ours, prompts):
    tokens, _ = written(ours, prompts)
    for number in range(3):
        assert written(ours, row(prompts, number))[0].tolist() == tokens[number : number + 1].tolist()


def test_padding_on_the_right(ours, prompts):
    """The first token comes behind the last real one."""
    count = prompts["attention_mask"].sum(1, keepdim=True)
    shift = (torch.arange(9) - count) % 9
    moved = {name: prompts[name].gather(1, shift) for name in ("input_ids", "attention_mask")}
    assert moved["attention_mask"][1].tolist() == [1] * 5 + [0] * 4
    assert written(ours, {**prompts, **moved})[0].tolist() == written(ours, prompts)[0].tolist()


def test_beams(ours, prompts):
    """The same with the cache, whose rows move, and without; each row as if alone."""
    options = {"num_beams": 4, "num_return_sequences": 2, "output_logits": False, "output_scores": True}
    tokens, output = written(ours, prompts, **options)
    assert tokens.shape == (6, 6)
    again, _ = written(ours, prompts, **options, use_cache=False)
    assert again.tolist() == tokens.tolist()
    assert output.cache.state.length.shape == (12,)
    for number in range(3):
        alone, _ = written(ours, row(prompts, number), **options)
        assert alone.tolist() == tokens[2 * number : 2 * number + 2].tolist()


def test_beams_find_what_greedy_does_not(ours, prompts):
    """One token and all beams: the likeliest of all pairs of tokens."""
    text = row(prompts, 1)
    tokens, _ = written(ours, text, num_beams=40, max_new_tokens=2, output_logits=False)
    ids = text["input_ids"][:, text["attention_mask"][0].bool()]
    first = ours(ids).logits[0, -1].clone()
    first[MARK] = float("-inf")
    pairs = torch.cat([ids.expand(40, -1), torch.arange(40)[:, None]], dim=1)[torch.arange(40) != MARK]
    second = ours(pairs).logits[:, -1].clone()
    second[:, MARK] = float("-inf")
    total = first.log_softmax(0)[torch.arange(40) != MARK][:, None] + second.log_softmax(1)
    best = int(total.argmax())
    assert tokens[0].tolist() == [int(pairs[best // 40, -1]), best % 40]


def test_several_samples_of_a_row(ours, prompts):
    torch.manual_seed(3)
    tokens, _ = written(ours, prompts, do_sample=True, num_return_sequences=3, top_k=5)
    torch.manual_seed(3)
    again, _ = written(ours, prompts, do_sample=True, num_return_sequences=3, top_k=5, use_cache=False)
    assert tokens.shape == (9, 6)
    assert again.tolist() == tokens.tolist()


@pytest.mark.parametrize("whole", [True, False], ids=["all tokens", "new tokens"])
def test_go_on_from_a_cache(ours, prompts, whole):
    tokens, _ = written(ours, prompts)
    first, output = written(ours, prompts, max_new_tokens=2)
    assert output.cache.get_seq_length() == 10  # the last token is not read yet
    sequence = output.sequences if whole else output.sequences[:, 10:]
    mask = nn.functional.pad(prompts["attention_mask"], (0, 2), value=1)
    second, _ = written(ours, {"input_ids": sequence, "attention_mask": mask}, cache=output.cache, max_new_tokens=4)
    assert torch.cat([first, second], dim=1).tolist() == tokens.tolist()


def test_another_image_after_an_answer(ours, prompts):
    text = row(prompts, 2)
    _, output = written(ours, text, max_new_tokens=3)
    more, pixels = torch.tensor([[9, MARK, 12]]), torch.randn(1, 3, 16, 16)
    ids = torch.cat([output.sequences[:, -1:], more], dim=1)
    mask = nn.functional.pad(text["attention_mask"], (0, 6), value=1)
    new = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    second, _ = written(ours, new, cache=output.cache)
    whole = {
        "input_ids": torch.cat([output.sequences, more], dim=1),
        "attention_mask": mask,
        "pixel_values": torch.cat([text["pixel_values"], pixels]),
    }
    assert second.tolist() == written(ours, whole)[0].tolist()


def test_a_state_that_another_call_read(ours, prompts):
    """What `core` read, `generate` goes on from."""
    ids = prompts["input_ids"][:, :8], prompts["input_ids"][:, 8:]
    mask, pixels = prompts["attention_mask"], prompts["pixel_values"]
    read = ours.core(ids[0], pixels[:2], attention_mask=mask[:, :8], return_state=True)
    cache = MultiModalMambaCache(read.state, 8)
    new = {"input_ids": ids[1], "attention_mask": mask, "pixel_values": pixels[2:]}
    assert written(ours, new, cache=cache)[0].tolist() == written(ours, prompts)[0].tolist()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_the_mark_is_never_written(build_ours, options):
    model = build_ours(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids = torch.tensor([[5, 6, 7]])
    tokens, _ = written(model, {"input_ids": ids}, suppress_tokens=[0, 1, 2], output_logits=False, **options)
    assert not set(tokens.flatten().tolist()) & {0, 1, 2, MARK}


def test_the_end_of_a_row(build_ours, prompts):
    model = build_ours()
    third = int(written(model, prompts)[0][1, 2])
    tokens, _ = written(model, row(prompts, 1), eos_token_id=third)
    assert tokens[0, -1] == third
    model = build_ours(eos_token_id=third)
    assert model.generation_config.eos_token_id == third
    assert written(model, row(prompts, 1))[0].tolist() == tokens.tolist()


def test_a_streamer(ours, prompts):
    class Streamer(TextStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got.append(value.flatten().tolist())

        def end(self):
            self.got.append("end")

    streamer = Streamer()
    tokens, _ = written(ours, row(prompts, 0), streamer=streamer)
    assert streamer.got[1:] == [*([token] for token in tokens[0].tolist()), "end"]


def test_what_generate_refuses(ours, prompts):
    with pytest.raises(InputError, match=r"`images` must be n = 3, one for each mark \(token 3\)"):
        ours.generate(**{**prompts, "pixel_values": prompts["pixel_values"][:2]}, num_beams=2)
    with pytest.raises(InputError, match=r"`images` must be n = 3, one for each mark \(token 3\)"):
        ours.generate(**{**prompts, "pixel_values": prompts["pixel_values"][:2]})
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        ours.generate(prompts["input_ids"][1:2], assistant_model=ours)


@pytest.mark.parametrize("beams", [1, 2])
def test_one_image_before_each_row(build_ours, beams):
    model = build_ours(image_token_id=None)
    both = {"input_ids": torch.randint(4, 40, (2, 5)), "pixel_values": torch.randn(2, 3, 16, 16)}
    tokens, _ = written(model, both, num_beams=beams, output_logits=False)
    for number in range(2):
        alone = {name: value[number : number + 1] for name, value in both.items()}
        assert written(model, alone, num_beams=beams, output_logits=False)[0].tolist() == [tokens[number].tolist()]
