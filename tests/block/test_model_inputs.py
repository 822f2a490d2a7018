"""What a `MultiModalMamba` refuses: one clear error each, that says the next step."""

import pytest
import torch

from mmm_block import ConfigError, InputError, MultiModalMambaConfig

MARK = 3
IDS = torch.tensor([[5, MARK, 7], [8, 9, 10]])
WORDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
ONE = torch.zeros(1, 3, 16, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_ids": torch.tensor([[5, 29]])},
            "`input_ids` must be from 0 to below vocab_size = 29, got 29. Use the tokenizer of this model.",
        ),
        ({"input_ids": torch.tensor([[5, -1]])}, "`input_ids` must be from 0 to below vocab_size = 29, got -1."),
        (
            {"input_ids": torch.tensor([5, 6])},
            "`input_ids` must be (b, l) with at least one token, got (2,). "
            "Begin an empty text with a token that begins texts.",
        ),
        (
            {"input_ids": torch.zeros(2, 0, dtype=torch.long)},
            "`input_ids` must be (b, l) with at least one token, got (2, 0).",
        ),
        (
            {"input_ids": torch.zeros(0, 2, dtype=torch.long)},
            "`input_ids` must be (b, l) with at least one token, got (0, 2).",
        ),
        (
            {"input_ids": torch.zeros(1, 2)},
            "`input_ids` must be int64 tokens (b, l), got torch.float32. Pass tokens of a tokenizer.",
        ),
        ({"input_ids": [[5, 6]]}, "`input_ids` must be int64 tokens (b, l), got list. Pass tokens of a tokenizer."),
        (
            {"images": ONE.expand(2, -1, -1, -1)},
            "`images` must be n = 1, one for each mark (token 3) in `input_ids`, got 2. "
            "Put the mark where an image stands, unmasked, and pass the images in the order of their marks.",
        ),
        ({}, "`images` must be n = 1, one for each mark (token 3) in `input_ids`, got 0."),
        (
            {"images": ONE, "attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
            "`images` must be n = 0, one for each mark (token 3) in `input_ids`, got 1.",
        ),
        (
            {"images": [ONE[0], torch.zeros(3, 8, 8)]},
            "`images` must be (c, y, x) of one size each, got (3, 8, 8), (3, 16, 24). Resize or crop them to one.",
        ),
        ({"images": []}, "`images` must be n = 1, one for each mark (token 3) in `input_ids`, got 0."),
        ({"images": [ONE]}, "`images` must be (c, y, x) of one size each, got (1, 3, 16, 24)."),
        (
            {"images": ONE[0]},
            "`images` must be (n, c, y, x), got (3, 16, 24). Pass images[None] for a single one.",
        ),
        (
            {"images": torch.zeros(1, 3, 16, 24, dtype=torch.uint8)},
            "`images` must be floating, got torch.uint8. Scale them as those that the model was trained on.",
        ),
        (
            {"input_ids": WORDS, "attention_mask": torch.ones(2, 2)},
            "`attention_mask` must be (b, l) = (2, 3) as `input_ids`, got (2, 2). "
            "It has a 1 or True for each real token.",
        ),
        (
            {"input_ids": WORDS, "attention_mask": torch.full((2, 3), 0.5)},
            "`attention_mask` must hold True or 1 for a real token and else 0, got others. "
            "A mask that is added to scores is none.",
        ),
        (
            {"input_ids": WORDS, "attention_mask": torch.zeros(2, 3)},
            "`attention_mask` must leave at least one real token in the batch, got none. "
            "Leave the call out: there is nothing to read.",
        ),
        (
            {"input_ids": WORDS, "cu_seqlens": torch.tensor([0, 3])},
            "with `cu_seqlens`, `input_ids` must be (1, l) and `attention_mask` None, got b = 2. "
            "Pack all texts into one row, without padding.",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": torch.tensor([0, 3]), "attention_mask": torch.ones(1, 3)},
            "with `cu_seqlens`, `input_ids` must be (1, l) and `attention_mask` None, got b = 1 and a mask.",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": torch.tensor([0, 2])},
            "`cu_seqlens` must be ints that rise from 0 to l = 3, got [0, 2]. "
            "They are where each text begins, and the end of the last.",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": torch.tensor([0, 2, 1, 3])},
            "`cu_seqlens` must be ints that rise from 0",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": torch.tensor([0.0, 3.0])},
            "`cu_seqlens` must be ints that rise from 0",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": torch.tensor(3)},
            "`cu_seqlens` must be ints that rise from 0 to l = 3, got 3.",
        ),
        (
            {"input_ids": WORDS, "labels": WORDS[:, :2]},
            "`labels` must be (b, l) = (2, 3) as `input_ids`, got (2, 2). "
            "Each label stands at its own token; the model moves them.",
        ),
        (
            {"input_ids": WORDS, "labels": WORDS + 20},
            "`labels` must be -100 or from 0 to below vocab_size = 29, got others. Put -100 where nothing is asked.",
        ),
        (
            {"input_ids": WORDS, "labels": torch.full_like(WORDS, -1)},
            "`labels` must be -100 or from 0 to below vocab_size",
        ),
        ({"input_ids": WORDS, "labels": WORDS.float()}, "`labels` must be int64 tokens (b, l), got torch.float32."),
        (
            {"input_ids": WORDS, "labels": torch.tensor([[5, -100, -100], [8, -100, -100]])},
            "`labels` must have a token to predict, got none. "
            "The first token of a text, padding and marks are not predicted.",
        ),
        (
            {"input_ids": WORDS, "labels": WORDS, "last_only": True},
            "`labels` ask for all logits, got last_only or return_embeddings. Leave the one or the other out.",
        ),
        (
            {"input_ids": WORDS, "labels": WORDS, "return_embeddings": True},
            "`labels` ask for all logits, got last_only",
        ),
        (
            {"attention_mask": [[1, 1, 1]]},
            "`attention_mask` must be (b, l) = (2, 3) as `input_ids`, got list. Pass a tensor.",
        ),
        (
            {"input_ids": WORDS[:1], "cu_seqlens": [0, 3]},
            "`cu_seqlens` must be ints that rise from 0 to l = 3, got list. Pass a tensor.",
        ),
        ({"labels": [[5]]}, "`labels` must be int64 tokens (b, l), got list. Pass a tensor."),
        ({"images": 5}, "`images` must be a tensor (n, c, y, x), or a list of tensors (c, y, x), got int."),
        ({"images": [None]}, "`images` must be a tensor (n, c, y, x), or a list of tensors (c, y, x), got NoneType."),
        (
            {"images": ONE.numpy()},
            "`images` must be a tensor (n, c, y, x), or a list of tensors (c, y, x), got ndarray.",
        ),
    ],
)
def test_bad_input(small, arguments, message):
    with pytest.raises(InputError) as caught:
        small()(**{"input_ids": IDS} | arguments)
    assert str(caught.value).startswith(f"MultiModalMamba: {message}")


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        (
            {"image_token_id": None},
            {"images": ONE},
            "`images` must be n = 2, one for each row, got 1. A config with image_token_id lets a row have any number.",
        ),
        (
            {"image_size": None, "image_token_id": None},
            {"images": ONE.expand(2, -1, -1, -1)},
            "`images` must be None in a model without an encoder, got images. Make it of a config with image_size.",
        ),
    ],
)
def test_images_that_a_model_has_no_place_for(small, fields, arguments, message):
    with pytest.raises(InputError) as caught:
        small(**fields)(WORDS, **arguments)
    assert str(caught.value) == f"MultiModalMamba: {message}"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([5, 29]), ": `input_ids` must be from 0 to below vocab_size = 29, got 29."),
        (torch.tensor([5.0, 6.0]), ": `input_ids` must be int64 tokens (b, l), got torch.float32."),
        (
            torch.tensor([[5], [6]]),
            ".step: `input_ids` must be one token a row, (b,), got (2, 1). Call the model itself for several.",
        ),
        (
            torch.tensor([5, MARK]),
            ".step: `input_ids` must be text, got the mark of an image (token 3). "
            "Call the model itself with the image.",
        ),
        ([5, 6], ".step: `input_ids` must be one token a row, (b,), got list. Pass a tensor."),
        (torch.tensor([5]), ": `state` must have b = 1 rows as `input_ids`, got 2."),
    ],
)
def test_bad_input_of_a_step_leaves_the_state_as_it_is(small, ids, message):
    model = small()
    state = model(WORDS, return_state=True).state
    before = state.clone()
    with pytest.raises(InputError) as caught:
        model.step(ids, state)
    assert str(caught.value).startswith(f"MultiModalMamba{message}")
    assert torch.equal(state.layers[0].conv, before.layers[0].conv)
    assert torch.equal(state.length, before.length)


FIELDS = {"vocab_size": 9, "dim": 8, "depth": 1}
IMAGE = {"image_size": 16, "image_token_id": 3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabsize": 9}, "unknown key 'vocabsize'. Did you mean 'vocab_size'?"),
        ({"dim": 0}, "`dim` must be an int of at least 1, got 0."),
        ({"depth": 1.5}, "`depth` must be an int of at least 1, got 1.5."),
        ({"dropout": 1.0}, "`dropout` must be from 0 to below 1, got 1.0."),
        ({"image_token_id": 9}, "`image_token_id` must be a token from 0 to below vocab_size = 9, or None, got 9."),
        (
            {"image_token_id": 3},
            "`image_token_id` must be None where image_size is None, got 3. "
            "A model of text alone has no images to mark.",
        ),
        (
            {"mixer_options": {"dt_rank": 2, "norm_eps": 1e-6, "d_state": 8}},
            "`mixer_options` must be further options, got ['d_state', 'norm_eps']. The config has fields for these.",
        ),
        (
            {"encoder_options": {"norm_eps": 1e-5, "heads": 2}},
            "`encoder_options` must be further options, got ['heads'].",
        ),
        ({"tie_embeddings": "no"}, "`tie_embeddings` must be True or False, got 'no'."),
        ({"depth": True}, "`depth` must be an int of at least 1, got True."),
        ({"encoder_depth": 0}, "`encoder_depth` must be an int of at least 1, got 0."),
        ({"heads": True}, "`heads` must be an int of at least 1, got True."),
        ({"dropout": "x"}, "`dropout` must be from 0 to below 1, got 'x'."),
        ({"dropout": False}, "`dropout` must be from 0 to below 1, got False."),
        ({"norm_eps": 0}, "`norm_eps` must be a number above 0, got 0."),
        ({"norm_eps": -1e-5}, "`norm_eps` must be a number above 0, got -1e-05."),
        ({"norm_eps": "x"}, "`norm_eps` must be a number above 0, got 'x'."),
        ({"eos_token_id": True}, "`eos_token_id` must be a token from 0 to below vocab_size = 9, or None, got True."),
        (
            IMAGE | {"eos_token_id": 3},
            "`image_token_id` must be a token of its own, got 3. "
            "It is eos_token_id as well: give the vocabulary one more token.",
        ),
        (
            IMAGE | {"eos_token_id": 3, "pad_token_id": 3},
            "`image_token_id` must be a token of its own, got 3. It is pad_token_id and eos_token_id as well",
        ),
        ({"mixer_options": [1]}, "`mixer_options` must be a dict, got [1]."),
        ({"fusion_options": None}, "`fusion_options` must be a dict, got None."),
        (
            {"mixer_options": {"dtrank": 2, "bias": True}},
            "`mixer_options` must be of bias, conv_bias, dt_rank, selection_norm, selection_norm_weight, "
            "got ['dtrank']. Leave the others out.",
        ),
        ({"encoder_options": {"register": 2}}, "`encoder_options` must be of activation, channels, class_token, "),
        ({"fusion_contract": True}, "`fusion_contract` must be 1, which the installed mmm-fusion speaks, got True."),
        ({"fusion_contract": 2}, "`fusion_contract` must be 1, which the installed mmm-fusion speaks, got 2."),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(ConfigError) as caught:
        MultiModalMambaConfig.from_dict(FIELDS | fields)
    assert str(caught.value).startswith(f"MultiModalMambaConfig: {message}")


def test_a_config_of_keywords_is_checked_too():
    with pytest.raises(ConfigError, match="`dropout` must be from 0 to below 1, got 'x'"):
        MultiModalMambaConfig(**FIELDS, dropout="x")


def test_pad_and_end_may_be_one_token():
    config = MultiModalMambaConfig(**FIELDS, **IMAGE, pad_token_id=2, eos_token_id=2)
    assert config == MultiModalMambaConfig.from_dict(config.to_dict())


def test_a_config_is_not_hashed():
    with pytest.raises(TypeError, match="unhashable type: 'MultiModalMambaConfig'"):
        hash(MultiModalMambaConfig(**FIELDS))


@pytest.mark.parametrize("value", [torch.ones(1), float("nan"), {1, 2}])
def test_what_json_has_not(value):
    config = MultiModalMambaConfig(**FIELDS, fusion_options={"start": value})
    with pytest.raises(ConfigError) as caught:
        config.to_dict()
    assert str(caught.value).startswith("MultiModalMambaConfig: `fusion_options` must hold what JSON has, got {'start'")
    assert str(caught.value).endswith("Use numbers, strings, bools, lists and dicts.")


def test_a_missing_key():
    with pytest.raises(ConfigError, match="expected vocab_size, depth, got none"):
        MultiModalMambaConfig.from_dict({"dim": 8})


def test_a_config_comes_back_from_json():
    config = MultiModalMambaConfig(**FIELDS, image_size=(16, 24), patch_size=8, mixer_options={"dt_rank": 2})
    assert MultiModalMambaConfig.from_dict(config.to_dict()) == config
