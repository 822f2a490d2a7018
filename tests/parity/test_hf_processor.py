"""The processor: texts with marks and pictures, ready for the model."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from mmm_block import InputError
from mmm_block.transformers import MultiModalMambaImageProcessor, MultiModalMambaProcessor
from mmm_train.data.pictures import to_bytes, to_tensor


def picture(height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_pixels_are_those_of_mmm_train():
    image = picture(20, 31)
    got = MultiModalMambaImageProcessor(size={"height": 16, "width": 16})(image, return_tensors="pt")
    assert torch.allclose(got["pixel_values"][0], to_tensor(to_bytes(image, 16)), atol=1e-6)


def test_kinds_of_pictures():
    processor = MultiModalMambaImageProcessor(size={"height": 8, "width": 12})
    grey, clear = Image.new("L", (9, 9)), Image.new("RGBA", (5, 7))
    array = np.zeros((6, 5, 3), dtype=np.uint8)
    pixels = processor([grey, clear, array, torch.zeros(3, 4, 4, dtype=torch.uint8)], return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape == (4, 3, 8, 12)
    assert pixels[0].eq(-1).all()
    assert processor(grey, do_normalize=False, return_tensors="pt")["pixel_values"].eq(0).all()


def test_a_call(processor):
    texts = ["what is <image>", "red and <image> blue <image>", "red"]
    images = [picture(20, 30, seed) for seed in range(3)]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [1, 2, 0]
    assert inputs["attention_mask"].sum(1).tolist() == [3, 5, 1]
    assert processor.batch_decode(inputs["input_ids"], skip_special_tokens=True) == ["what is", "red and blue", "red"]


def test_other_numbers_of_pictures_than_marks(processor):
    with pytest.raises(ValueError, match="Found total 1 <image> tokens and 2 images"):
        processor(images=[picture(8, 8)] * 2, text="what is <image>")
    with pytest.raises(ValueError, match="Found 1 <image> tokens in the text but no images were passed"):
        processor(text="what is <image>")


def test_a_tokenizer_without_the_mark(processor):
    inner = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    message = (
        "MultiModalMambaProcessor: `tokenizer` must have the token '<image>', got one without. "
        """Add it: tokenizer.add_special_tokens({"additional_special_tokens": ['<image>']})."""
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        MultiModalMambaProcessor(processor.image_processor, bare)
    bare.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert MultiModalMambaProcessor(processor.image_processor, bare).image_token_id == 1


def test_no_mark(processor):
    plain = MultiModalMambaProcessor(processor.image_processor, processor.tokenizer, image_token=None)
    inputs = plain(images=[picture(8, 8)] * 2, text=["red", "blue"], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 1)
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("mark", ["<image>", None])
@pytest.mark.parametrize("with_model", [True, False])
def test_saved_and_loaded(processor, build_ours, tmp_path, mark, with_model):
    processor = MultiModalMambaProcessor(
        processor.image_processor, processor.tokenizer, chat_template=processor.chat_template, image_token=mark
    )
    if with_model:
        build_ours().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = (AutoProcessor if with_model else MultiModalMambaProcessor).from_pretrained(tmp_path)
    assert type(loaded) is MultiModalMambaProcessor
    assert (loaded.image_token, loaded.image_token_id) == (processor.image_token, processor.image_token_id)
    assert loaded.chat_template == processor.chat_template
    texts, images = ["red <image>"], [picture(20, 30)]
    expected, got = (each(images=images, text=texts, return_tensors="pt") for each in (processor, loaded))
    assert all(got[name].equal(expected[name]) for name in expected)
    if with_model:
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MultiModalMambaImageProcessor
        assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == processor.tokenizer.get_vocab()


def test_messages(processor):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(9, 9)}, {"type": "text", "text": "red"}]}
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [processor.image_token_id, *processor.tokenizer("red")["input_ids"]]
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)


def test_the_pre_tokenizer_of_the_fixture_keeps_the_mark(processor):
    """A mark that stands at a word is one all the same."""
    assert isinstance(processor.tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.Whitespace)
    assert processor.tokenizer("red<image>blue")["input_ids"][1] == processor.image_token_id
