"""`generate` and `stream`: what is written, where it ends, what a row depends on, and what is left to go on from."""

import gc
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import mmm_fusion
from mmm_block import InputError

METHODS = [method.name for method in mmm_fusion.available()]
MARK, LONGEST = 3, 12
PROMPTS = [[5, MARK, 7, 8, 9], [10, 11], [MARK, 12, MARK, 13], [14, 15, 16]]  # 1, 0, 2 and 0 images
IMAGES = [1, 0, 2, 0]


def pictures():
    return torch.randn(sum(IMAGES), 3, 16, 24, generator=torch.Generator().manual_seed(1))


def padded(prompts, side="left", pad=0):
    """Token ids and mask of prompts of any lengths."""
    longest = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), longest), pad), torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), True
    return ids, mask


def alone(prompt, images, row):
    """One prompt without padding, and its images."""
    start = sum(IMAGES[:row])
    return torch.tensor([prompt]), images[start : start + IMAGES[row]] if IMAGES[row] else None


def by_hand(model, ids, images, steps):
    """The greedy tokens of one row: the whole text anew for each."""
    for _ in range(steps):
        logits = model(ids, images).logits[:, -1]
        logits[:, MARK] = -math.inf
        ids = torch.cat([ids, logits.argmax(1)[:, None]], dim=1)
    return ids[0, -steps:]


def spell(tokens):
    """Text of tokens: a letter each, two for 5, and none for 6."""
    return "".join({5: "xy", 6: ""}.get(token, chr(ord("a") + token)) for token in tokens)


SILENT = str.maketrans({"e": "a", "x": "b", "y": "", "h": "", "i": "", "j": ""})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_is_the_likeliest_token_of_the_whole_text_for_prompts_of_any_length(small, method, side):
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded(PROMPTS, side)
    found = model.generate(ids, images, attention_mask=mask, max_new_tokens=6)
    assert found.lengths.tolist() == [6] * 4
    assert found.reasons == ("length",) * 4
    for row, prompt in enumerate(PROMPTS):
        assert found.tokens[row].tolist() == by_hand(model, *alone(prompt, images, row), 6).tolist()


def test_a_model_of_text_alone(small):
    model = small(image_size=None, image_token_id=None)
    ids = torch.tensor([[5, 7, 8]])
    with torch.no_grad():
        whole = ids
        for _ in range(9):
            whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(2)], dim=1)
    assert torch.equal(model.generate(ids, max_new_tokens=9).tokens, whole[:, 3:])


def test_one_image_a_row_in_a_model_without_marks(small):
    model, ids, images = small(image_token_id=None), torch.tensor([[5, 7], [8, 9]]), torch.randn(2, 3, 16, 24)
    found = model.generate(ids, images, max_new_tokens=5)
    whole = torch.cat([ids, found.tokens], dim=1)
    assert torch.equal(model(whole, images).logits[:, 1:-1].argmax(2), found.tokens)


def test_images_may_be_encoded_before(small):
    model, images = small(), pictures()
    ids, mask = padded(PROMPTS)
    pixels = model.generate(ids, images, attention_mask=mask, max_new_tokens=5)
    tokens = model.generate(ids, model.backbone.encode(images), attention_mask=mask, max_new_tokens=5)
    assert torch.equal(pixels.tokens, tokens.tokens)


SAMPLED = {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_depends_on_its_own_seed_and_text_alone(small, side):
    model, images, seeds = small(), pictures(), [4, 5, 6, 5]
    ids, mask = padded(PROMPTS, side)
    batch = model.generate(ids, images, attention_mask=mask, seeds=seeds, max_new_tokens=LONGEST, **SAMPLED)
    for row, prompt in enumerate(PROMPTS):
        one = model.generate(*alone(prompt, images, row), seeds=seeds[row : row + 1], max_new_tokens=LONGEST, **SAMPLED)
        assert one.tokens[0].tolist() == batch.tokens[row].tolist()
    other = model.generate(ids, images, attention_mask=mask, seeds=[4, 5, 7, 5], max_new_tokens=LONGEST, **SAMPLED)
    assert (other.tokens != batch.tokens).any(dim=1).tolist() == [False, False, True, False]


def test_a_row_draws_the_same_where_others_have_ended(small):
    model, seeds, options = (
        small(),
        torch.arange(8),
        {"max_new_tokens": 30, "stop_tokens": range(6), "temperature": 1.5},
    )
    ids = torch.tensor([[7, 8]]).expand(8, -1)
    batch = model.generate(ids, seeds=seeds, **options)
    assert len(set(batch.lengths.tolist())) > 3
    for row in range(8):
        one = model.generate(ids[:1], seeds=seeds[row : row + 1], **options)
        assert one.tokens[0].tolist() == batch.tokens[row, : batch.lengths[row]].tolist()


def test_writing_in_parts_with_one_seed_gives_what_the_whole_gives(small):
    model, ids = small(), torch.tensor([[5, 7], [8, 9]])
    options = {"temperature": 1.5, "seeds": torch.tensor([1, 2])}
    whole = model.generate(ids, max_new_tokens=9, **options).tokens
    first = model.generate(ids, max_new_tokens=4, **options)
    # The state holds the fourth token: what follows is chosen behind the fifth.
    second = model.generate(whole[:, 4:5], state=first.state, max_new_tokens=4, **options)
    assert torch.equal(torch.cat([first.tokens, whole[:, 4:5], second.tokens], dim=1), whole)


def test_without_seeds_torch_gives_them(small):
    model, ids = small(), torch.tensor([[5, 7], [5, 7]])

    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(ids, temperature=1.5, max_new_tokens=LONGEST).tokens

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert not torch.equal(*sample(0))


def test_greedy_leaves_torchs_generator_alone(small):
    model = small()
    before = torch.get_rng_state()
    model.generate(torch.tensor([[5, 7]]), max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_penalty_counts_the_prompt_and_what_was_written_and_no_padding(small):
    model = small(image_size=None, image_token_id=None)
    prompts = [[5, 7, 8], [9]]
    ids, mask = padded(prompts)
    found = model.generate(ids, attention_mask=mask, repetition_penalty=1e4, max_new_tokens=20)
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for token in found.tokens[row].tolist():
            logits = model(torch.tensor([text])).logits[0, -1]
            scores = [
                (x / 1e4 if x > 0 else x * 1e4) if number in text else x for number, x in enumerate(logits.tolist())
            ]
            assert token == max(range(29), key=scores.__getitem__)
            text.append(token)
        assert len(set(text)) == len(text)
    assert (found.tokens == 0).any()  # the pad token was not in the text before


def test_the_mark_is_never_written(small):
    model = small(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[MARK] = 0.0
        model.lm_head.weight[[n for n in range(29) if n != MARK]] *= 1e-3  # near the mark's
    ids = torch.tensor([[5, 7]]).expand(40, -1)
    written = model.generate(ids, max_new_tokens=30, temperature=1.0).tokens
    assert set(written.flatten().tolist()) == set(range(29)) - {MARK}


def chain(model, *tokens):
    """Make a model of text write these tokens in a circle, whatever it has read."""
    v = model.config.vocab_size
    with torch.no_grad():
        for parameter in model.backbone.layers.parameters():
            parameter.zero_()
        model.embedding.weight.copy_(F.one_hot(torch.arange(v), model.config.dim).float())
        model.lm_head.weight.zero_()
        for token, following in zip(tokens, [*tokens[1:], tokens[0]], strict=True):
            model.lm_head.weight[following, token] = 1.0
    return model


@pytest.fixture
def circle(small):
    """Writes 4 5 6 7 8 9 and again from the start."""
    return chain(small(image_size=None, image_token_id=None, tie_embeddings=False, dim=29), 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(("stop", "length"), [(7, 4), ([9, 7], 4), (torch.tensor([8]), 5), ((), 10), ([20], 10)])
def test_stop_tokens(circle, stop, length):
    found = circle.generate(torch.tensor([[9]]), max_new_tokens=10, stop_tokens=stop)
    assert found.tokens.tolist() == [[4, 5, 6, 7, 8, 9, 4, 5, 6, 7][:length]]
    assert found.lengths.tolist() == [length]
    assert found.reasons == ("length" if length == 10 else "stop_token",)


def test_the_configs_end_token_ends_a_row_unless_others_are_given(small):
    model = chain(small(image_size=None, image_token_id=None, tie_embeddings=False, dim=29, eos_token_id=6), 4, 5, 6, 7)
    prompt = torch.tensor([[4]])
    assert model.generate(prompt, max_new_tokens=5).tokens.tolist() == [[5, 6]]
    assert model.generate(prompt, max_new_tokens=5, stop_tokens=7).tokens.tolist() == [[5, 6, 7]]
    assert model.generate(prompt, max_new_tokens=5, stop_tokens=[]).lengths.tolist() == [5]


@pytest.mark.parametrize("stop", [torch.tensor(7), torch.tensor([7, 11]), torch.tensor([[7]], dtype=torch.int32)])
def test_stop_tokens_may_be_a_tensor(circle, stop):
    expected = circle.generate(torch.tensor([[9]]), max_new_tokens=10, stop_tokens=7)
    found = circle.generate(torch.tensor([[9]]), max_new_tokens=10, stop_tokens=stop)
    assert found.reasons == ("stop_token",)
    assert torch.equal(found.tokens, expected.tokens)


def test_the_last_token_that_may_come_is_a_stop_token_first(circle):
    assert circle.generate(torch.tensor([[4]]), max_new_tokens=2, stop_tokens=6).reasons == ("stop_token",)


@pytest.mark.parametrize(
    ("stop", "length"),
    [
        ("h", 4),
        ("yh", 4),  # the end of 5, nothing of 6, and 7
        ("xyxy", 10),  # not there: 10 is the most
        (["zz", "yhijexyh"], 10),  # from 5 on to the second 7: nine tokens of eight letters
        (["zzz", "jex"], 8),  # 9, 4 and a part of 5
        (("j", "i"), 5),
    ],
)
def test_stop_strings_are_found_wherever_tokens_begin_and_end(circle, stop, length):
    found = circle.generate(torch.tensor([[9]]), max_new_tokens=10, stop_strings=stop, decode=spell)
    assert found.tokens.tolist() == [[4, 5, 6, 7, 8, 9, 4, 5, 6, 7][:length]]
    text, stops = spell(found.tokens[0].tolist()), [stop] if isinstance(stop, str) else stop
    assert found.reasons == ("stop_string" if any(each in text for each in stops) else "length",)


def test_a_stop_string_is_found_across_tokens_that_write_nothing(circle):
    found = circle.generate(
        torch.tensor([[9]]), max_new_tokens=20, stop_strings="ba", decode=lambda tokens: spell(tokens).translate(SILENT)
    )
    assert found.tokens.tolist() == [[4, 5, 6, 7, 8, 9, 4]]
    assert found.reasons == ("stop_string",)


def test_a_stop_string_in_the_prompt_does_not_count(circle):
    assert circle.generate(torch.tensor([[8, 9]]), max_new_tokens=3, stop_strings="ij", decode=spell).lengths == 3


def test_a_stop_string_of_letters_of_several_bytes(small):
    """A token is a byte, as in byte-level vocabularies: no token is a letter by itself."""
    text = "a\u00e9\u4e16\U0001f600"
    model = small(image_size=None, image_token_id=None, tie_embeddings=False, dim=256, vocab_size=256)
    chain(model, *dict.fromkeys(text.encode()))

    def decode(tokens):
        return bytes(tokens).decode(errors="replace")

    written = list(dict.fromkeys(text.encode()))
    stop = decode(written[:6])[1:]  # of two and of three bytes
    found = model.generate(torch.tensor([written[-1:]]), max_new_tokens=30, stop_strings=stop, decode=decode)
    assert found.tokens[0].tolist() == written[:6]
    assert found.reasons == ("stop_string",)


def test_decode_gets_a_few_of_the_last_tokens_however_many_there_are(circle):
    asked = []

    def decode(tokens):
        asked.append(len(tokens))
        return spell(tokens)

    found = circle.generate(torch.tensor([[9]]), max_new_tokens=300, stop_strings=["zz", "not there"], decode=decode)
    assert found.reasons == ("length",)
    assert len(asked) == 300
    assert max(asked) < 30


def test_rows_that_have_ended_get_padding_and_are_computed_no_more(small, monkeypatch):
    model = chain(
        small(image_size=None, image_token_id=None, tie_embeddings=False, dim=29, pad_token_id=1), 4, 5, 6, 7, 8, 9
    )
    batches, step = [], model._step
    monkeypatch.setattr(model, "_step", lambda ids, state: batches.append(ids.tolist()) or step(ids, state))
    found = model.generate(torch.tensor([[6], [9], [7]]), max_new_tokens=10, stop_tokens=8)
    assert found.tokens.tolist() == [[7, 8, 1, 1, 1], [4, 5, 6, 7, 8], [8, 1, 1, 1, 1]]
    assert found.lengths.tolist() == [2, 5, 1]
    assert found.reasons == ("stop_token",) * 3
    assert batches == [[7, 4, 8], [8, 5], [6], [7], [8]]


@pytest.mark.parametrize(
    ("fields", "pad"), [({}, 0), ({"eos_token_id": 8}, 8), ({"eos_token_id": 8, "pad_token_id": 2}, 2)]
)
def test_what_pads(small, fields, pad):
    model = chain(small(image_size=None, image_token_id=None, tie_embeddings=False, dim=29, **fields), 4, 5, 6, 7, 8, 9)
    found = model.generate(torch.tensor([[6], [7]]), max_new_tokens=10, stop_tokens=8)
    assert found.tokens.tolist() == [[7, 8], [8, pad]]


@pytest.mark.parametrize("method", METHODS)
def test_the_state_holds_all_that_was_written(small, method):
    """Also where rows end early, each at another place, and images are of several forms."""
    model, images = small(fusion_method=method), pictures()
    ids, mask = padded(PROMPTS)
    found = model.generate(
        ids, images, attention_mask=mask, max_new_tokens=LONGEST, temperature=2.0, seeds=range(4), stop_tokens=range(15)
    )
    assert len(set(found.lengths.tolist())) > 1
    assert found.state.length.tolist() == (mask.sum(1) + found.lengths).tolist()
    question = torch.tensor([[17, 18, 19]]).expand(4, -1)
    after = model(question, state=found.state).logits
    for row, prompt in enumerate(PROMPTS):
        text, own = alone(prompt, images, row)
        text = torch.cat([text[0], found.tokens[row, : found.lengths[row]], question[row]])
        torch.testing.assert_close(after[row], model(text[None], own).logits[0, -3:], atol=1e-5, rtol=1e-5)


def test_a_chat_goes_on_with_another_image_and_can_go_back(small):
    model, images = small(), torch.randn(2, 3, 16, 24)
    opened = model.generate(torch.tensor([[5, MARK, 7]]), images[:1], max_new_tokens=4)
    kept = opened.state.clone()
    question = torch.tensor([[8, MARK, 9]])
    answer = model.generate(question, images[1:], state=opened.state, max_new_tokens=4)
    again = model.generate(question, images[1:], state=opened.state, max_new_tokens=4)
    assert torch.equal(answer.tokens, again.tokens)  # the state is as it was
    for one, other in zip(kept.layers, opened.state.layers, strict=True):
        assert torch.equal(one.conv, other.conv)
        assert torch.equal(one.ssm, other.ssm)
    whole = torch.cat([torch.tensor([[5, MARK, 7]]), opened.tokens, question], dim=1)
    assert torch.equal(answer.tokens, model.generate(whole, images, max_new_tokens=4).tokens)


def test_a_stream_gives_the_tokens_of_each_step(small):
    model, images = small(), pictures()
    ids, mask = padded(PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "stop_tokens": range(8)}
    whole = model.generate(ids, images, **options)
    stream = model.stream(ids, images, **options)
    steps = []
    for tokens in stream:
        steps.append(tokens)
        ended = [reason is not None for reason in stream.reasons]
        assert ended == [length == whole.lengths[row] for row, length in enumerate(stream.lengths)]
    assert torch.equal(torch.stack(steps, dim=1), whole.tokens)
    assert stream.lengths == whole.lengths.tolist()
    assert tuple(stream.reasons) == whole.reasons
    assert next(stream, None) is None


def test_a_stream_can_be_left_and_its_state_goes_on(small):
    model, ids = small(), torch.tensor([[5, 7, 8]])
    stream = model.stream(ids, max_new_tokens=100)
    begun = [int(next(stream)) for _ in range(3)]
    state = stream.state
    assert state.length.tolist() == [6]
    rest = [int(next(stream)) for _ in range(3)]
    assert state.length.tolist() == [6]  # it is the caller's own
    logits = model(
        torch.tensor([[begun[-1]]]), state=model(torch.tensor([[5, 7, 8, *begun[:2]]]), return_state=True).state
    )
    assert int(logits.logits[0, 0].argmax()) == rest[0]
    whole = model.generate(ids, max_new_tokens=6).tokens[0].tolist()
    assert begun + rest == whole


def test_the_head_reads_the_last_token_of_a_prompt_alone(small):
    model, read = small(), []
    model.lm_head.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[:-1].numel()))
    ids, mask = padded(PROMPTS)
    model.generate(ids, pictures(), attention_mask=mask, max_new_tokens=3)
    assert read == [4] * 4


class Calls(TorchDispatchMode):
    """The names of all operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_a_step_waits_for_the_device_at_its_tokens_alone(small, options):
    stream = small().stream(torch.tensor([[5, 7], [8, 9]]), **options)
    next(stream)
    with Calls() as calls:
        next(stream)
    assert "embedding" in calls.names
    assert not calls.names & {"_local_scalar_dense", "is_nonzero", "item", "aminmax", "lift_fresh"}


def test_a_stream_keeps_nothing_for_a_token(small):
    model = small()
    stream = model.stream(
        torch.tensor([[5, 7]]), max_new_tokens=1000, temperature=1.0, stop_strings="never", decode=spell, stop_tokens=()
    )

    def tensors():
        gc.collect()
        return sum(each.numel() for each in gc.get_objects() if type(each) is torch.Tensor)

    sizes = []
    for _ in range(3):
        for _ in range(50):
            next(stream)
        sizes.append(tensors())
    assert sizes[0] == sizes[1] == sizes[2]


def test_nothing_of_it_records_a_gradient(small):
    found = small().train().generate(torch.tensor([[5, 7]]), max_new_tokens=3)
    assert not any(each.requires_grad for layer in found.state.layers for each in layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types(small, dtype):
    model, images = small().to(dtype), pictures().to(dtype)
    ids, mask = padded(PROMPTS)
    found = model.generate(ids, images, attention_mask=mask, max_new_tokens=5, temperature=1.0, seeds=range(4))
    assert found.tokens.shape == (4, 5)
    assert found.tokens.dtype == torch.int64


def test_a_row_of_nan_leaves_the_others_as_they_are(small):
    model, images = small(), pictures()
    ids, mask = padded(PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "temperature": 1.0, "seeds": range(4)}
    before = model.generate(ids, images, **options).tokens
    images[0] = math.nan
    after = model.generate(ids, images, **options).tokens
    assert torch.equal(before[1:], after[1:])


IDS = torch.tensor([[5, 7], [8, 9]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 0},
            "generate: `max_new_tokens` must be an int of at least 1, got 0. "
            "To read a prompt alone, call the model with return_state=True.",
        ),
        ({"max_new_tokens": True}, "generate: `max_new_tokens` must be an int of at least 1, got True."),
        ({"stop_strings": None}, "generate: `stop_strings` must be a string or strings, got None. Leave it out where"),
        ({"stop_strings": [3], "decode": spell}, "generate: `stop_strings` must be a string or strings, got [3]."),
        ({"max_new_tokens": 2.5}, "generate: `max_new_tokens` must be an int of at least 1, got 2.5."),
        (
            {"stop_tokens": [1, 29]},
            "generate: `stop_tokens` must be from 0 to below vocab_size = 29, got 29. Use the tokenizer of this model.",
        ),
        (
            {"stop_tokens": "ab"},
            "generate: `stop_tokens` must be an int, ints or None, got 'ab'. Text goes to stop_strings.",
        ),
        ({"stop_tokens": [1.5]}, "generate: `stop_tokens` must be an int, ints or None, got [1.5]."),
        ({"stop_tokens": torch.tensor(5.0)}, "generate: `stop_tokens` must be an int, ints or None, got tensor(5.)."),
        (
            {"seeds": ["a"], "temperature": 1.0},
            "generate: `seeds` must be b = 2 ints below 2**63, one for each row, got ['a']. range(b) will do.",
        ),
        (
            {"seeds": [2**64, 1], "temperature": 1.0},
            "generate: `seeds` must be b = 2 ints below 2**63, one for each row, got [18446744073709551616, 1].",
        ),
        ({"stop_tokens": -1}, "generate: `stop_tokens` must be from 0 to below vocab_size = 29, got -1."),
        (
            {"stop_strings": ["."]},
            "generate: with `stop_strings`, `decode` must turn tokens into text, got None. "
            "Pass decode=tokenizer.decode.",
        ),
        (
            {"stop_strings": ["a", ""], "decode": spell},
            "generate: `stop_strings` must have a letter or more each, got ''. Leave it out.",
        ),
        (
            {"seeds": [1, 2, 3], "temperature": 1.0},
            "generate: `seeds` must be b = 2 ints, one for each row, got torch.int64 (3,). range(b) will do.",
        ),
        (
            {"seeds": 1, "temperature": 1.0},
            "generate: `seeds` must be b = 2 ints, one for each row, got torch.int64 ()",
        ),
        (
            {"seeds": [0.5, 1.5], "temperature": 1.0},
            "generate: `seeds` must be b = 2 ints, one for each row, got torch.float32 (2,).",
        ),
        (
            {"seeds": [1, 2]},
            "generate: `seeds` must be None at temperature = 0, where nothing is drawn, got some. "
            "Pass temperature=1.0 to draw from the model's own probabilities.",
        ),
        ({"top_k": 5}, "generate: `top_k` must be None at temperature = 0, got 5."),
        ({"temperature": -0.5}, "generate: `temperature` must be a number of at least 0, got -0.5."),
        (
            {"attention_mask": torch.tensor([[True, True], [False, False]])},
            "generate: `attention_mask` must leave each row at least one real token, got none in row 1. "
            "Begin an empty text with a token that begins texts.",
        ),
        (
            {"input_ids": torch.zeros(1, 0, dtype=torch.long)},
            "MultiModalMamba: `input_ids` must be (b, l) with at least one token, got (1, 0).",
        ),
        (
            {"input_ids": torch.tensor([[29]])},
            "MultiModalMamba: `input_ids` must be from 0 to below vocab_size = 29, got 29.",
        ),
        ({"input_ids": torch.tensor([[MARK]])}, "MultiModalMamba: `images` must be n = 1, one for each mark"),
    ],
)
def test_what_cannot_be_is_one_clear_error(small, options, message):
    with pytest.raises(InputError) as caught:
        small().generate(**{"input_ids": IDS} | options)
    assert str(caught.value).startswith(message)


def test_an_option_that_does_not_exist(small):
    with pytest.raises(TypeError, match="do_sample"):
        small().generate(IDS, do_sample=True)
