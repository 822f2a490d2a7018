"""Words in numbers, and batches in which each picture stands once with all its questions."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmm_train import DataError, Tokenizer, read_metadata
from mmm_train.data import SPECIAL, Examples, Text, batches, normal, shuffled
from mmm_train.data.tokenizer import ANSWER, END, UNKNOWN


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.learn(["What colour is it?", "Is it red?", "is it it"])


def test_words_in_lower_case_and_punctuation(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("WHAT  colour is it ?") == tokenizer.encode("what colour is it?")
    assert len(tokenizer.encode("what colour is it?")) == 5
    assert tokenizer.encode("it") == [len(SPECIAL)]  # the most frequent follows the special tokens
    assert len(tokenizer) == len(SPECIAL) + 6
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []


@pytest.mark.parametrize(
    "text",
    [
        "A T-shirt, 3.5 m of it (or so): that's all!",
        'it says "Open 9-5", and a/b',
        "  une  Boule\u00a0rouge ! l'image …",
        "ﬁne ▁ snake_case e\u0301",
        "<image> [PAD] <end>",
        "猫 🐈 x²",
        "",
    ],
)
def test_what_is_encoded_can_be_written_again(text: str) -> None:
    tokenizer = Tokenizer.learn([text])
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == normal(text)
    assert all(token >= len(SPECIAL) for token in tokens)
    assert Tokenizer.from_json(tokenizer.to_json()).encode(text) == tokens
    assert normal(normal(text)) == normal(text)


def test_texts_as_they_are_shown() -> None:
    assert normal(" It's  a RED Ball , isn't it ?") == "it's a red ball, isn't it?"
    tokenizer = Tokenizer.learn(["a red ball"])
    assert tokenizer.decode([*range(len(SPECIAL)), *tokenizer.encode("red ball")]) == "red ball"


def test_unknown_words(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("is it purple")[-1] == UNKNOWN
    assert tokenizer.unknown_words("is the Shape purple?") == ["the", "Shape", "purple"]
    assert tokenizer.unknown_words("is it red?") == []


def test_tokenizer_is_kept_as_text(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode("is it red, too?") == tokenizer.encode("is it red, too?")
    assert again.to_json() == tokenizer.to_json()


@pytest.fixture
def examples(folder: Path) -> Examples:
    data = read_metadata(folder)
    return Examples(data, Tokenizer.learn(text for q in data.questions for text in (q.text, q.answer)), 16)


def test_each_picture_once_with_all_its_questions(examples: Examples) -> None:
    first, *_, last = batches(examples, 5)
    assert first.images.shape == (5, 3, 16, 16)
    assert last.images.shape == (2, 3, 16, 16)
    assert first.image_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert first.text.shape == (10, 8)
    assert first.text_mask.sum(1).tolist() == [8, 7] * 5
    assert first.prompt_mask.sum(1).tolist() == [6, 5] * 5
    assert (first.text[~first.text_mask] == 0).all()
    assert first.text[first.text_mask].min() > UNKNOWN


def test_a_text_is_question_answer_start_answer_and_end(tokenizer: Tokenizer) -> None:
    what, red = tokenizer.encode("is it red?"), tokenizer.encode("it red")
    text = Text.of(tokenizer, "Is it red?", "it red")
    assert text.tokens.tolist() == [*what, ANSWER, *red, END]
    assert text.labels.tolist() == [-100] * 5 + [*red, END]
    caption = Text.of(tokenizer, "", "it red")
    assert caption.tokens.tolist() == [ANSWER, *red, END]
    asked = Text.of(tokenizer, "Is it red?")
    assert (asked.tokens.tolist(), asked.labels.tolist()) == ([*what, ANSWER], [-100] * 5)


def test_order_and_start(examples: Examples) -> None:
    order = shuffled(len(examples), seed=0, epoch=1)
    assert sorted(order) == list(range(len(examples)))
    assert order == shuffled(len(examples), seed=0, epoch=1)
    assert order != shuffled(len(examples), seed=0, epoch=2)
    assert order != shuffled(len(examples), seed=1, epoch=1)
    images = torch.stack([examples[index].image for index in order])
    assert torch.equal(torch.cat([batch.images for batch in batches(examples, 5, order=order)]), images)
    assert torch.equal(torch.cat([batch.images for batch in batches(examples, 5, order=order, start=1)]), images[5:])
    assert list(batches(examples, 5, order=order, start=3)) == []


@pytest.mark.parametrize("kept", [True, False])
def test_pictures_are_read_once_where_they_fit_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    data = read_metadata(folder)
    size = len(data.pictures) * 3 * 16 * 16
    monkeypatch.setattr(Examples, "KEEP", size if kept else size - 1)
    examples = Examples(data, Tokenizer.learn(["it"]), 16)
    before = [example.image for example in examples]
    Image.new("RGB", (16, 16), "white").save(folder / "7.png")
    after = [example.image for example in examples]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [kept or i != 7 for i in range(12)]


def test_changes_leave_the_picture_that_is_kept(examples: Examples) -> None:
    examples.change = lambda image, index: image.mul_(2)
    first, again = examples[0].image, examples[0].image
    assert torch.equal(first, again)


def test_workers_give_the_same_batches(examples: Examples, capfd: pytest.CaptureFixture[str]) -> None:
    for here, there in zip(batches(examples, 5), batches(examples, 5, workers=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_broke_meanwhile(examples: Examples, folder: Path, workers: int) -> None:
    (folder / "7.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        list(batches(examples, 5, workers=workers))
    assert str(caught.value) == f"{folder / '7.png'}: a picture was expected, got a file that is none."
