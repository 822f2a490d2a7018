"""Answers word by word: what `generate` writes, the most probable ones first, and captions."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from mmm_block import MultiModalMamba
from mmm_train import Config, DataError, ModelConfig, Run, Terminal, ask, evaluate_run, read_metadata, train
from mmm_train.answers import write_answers
from mmm_train.cli import main
from mmm_train.data import SPECIAL, Batch, Examples, collate
from mmm_train.data.tokenizer import END, IMAGE
from mmm_train.evaluate import answer_all
from mmm_train.model import new_model

COLOURS = {"red": (220, 30, 30), "light blue": (150, 190, 255), "dark blue": (0, 0, 110)}


SMALL = {"dim": 32, "depth": 1, "image_size": 16, "encoder_dim": 32, "encoder_depth": 1}


def write_captions(folder: Path, pictures: int, questions: bool = True) -> Path:
    """Halves of one colour each, with a caption; a question about every second as well, if wanted."""
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file_name", "caption", "question", "answer"])
        for number in range(pictures):
            upper, lower = list(COLOURS)[number % 3], list(COLOURS)[number // 3 % 3]
            image = Image.new("RGB", (16, 16), COLOURS[upper])
            image.paste(COLOURS[lower], (0, 8, 16, 16))
            image.save(folder / f"{number}.png")
            asked = ("What's above?", upper) if questions and number % 2 == 0 else ("", "")
            lines.writerow([f"{number}.png", f"{upper.title()} above, {lower} below.", *asked])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learnt captions, and a few answers."""
    folder = write_captions(tmp_path_factory.mktemp("captions") / "pictures", 18)
    config = Config.from_dict(
        {
            "data": {"train": str(folder), "test": str(folder)},
            "model": {**SMALL, "fusion": "concat"},
            "train": {"epochs": 60, "batch": 6, "lr": 1e-2, "warmup": 10, "evaluate": 60, "device": "cpu"},
        }
    )
    return train(config, folder.parent / "run", Terminal(Console(quiet=True)))


def test_captions_are_learnt(run: Run, quiet: Terminal) -> None:
    assert run.longest == len(run.tokenizer.encode("light blue above, light blue below.")) + 1 == 9
    scores = evaluate_run(run, quiet)
    assert (scores.all.asked, scores.all.part, scores.yes_no.asked) == (27, 1.0, 0)
    picture = Path(run.config.data.test) / "5.png"
    best, *others = ask(run, picture, top=3)
    assert best.text == "dark blue above, light blue below."
    assert best.probability > 0.5
    assert len(others) == 2
    assert ask(run, picture, "What's above?", top=1)[0].text == "dark blue"
    assert ask(run, picture, " ", top=1) == [best]


def test_the_greedy_way_is_that_of_generate(run: Run) -> None:
    data = read_metadata(run.config.data.test)
    model, examples = run.load_model(), Examples(data, run.tokenizer, 16)
    untrained = new_model(run.config.model, len(run.tokenizer)).eval()
    with torch.no_grad():
        untrained.embedding.weight[len(SPECIAL) :].normal_(std=0.4)  # it has something to say
    for each in (model, untrained):
        answered = answer_all(each, examples, run.tokenizer, run.longest)
        assert [(a.picture, a.question) for a in answered] == [(p, q) for p in data.pictures for q in p.questions]
        for index, picture in enumerate(data.pictures):
            for question, text in zip(picture.questions, examples[index].texts, strict=True):
                prompt = torch.cat([torch.tensor([IMAGE]), text.tokens[text.labels == -100]])[None]
                out = each.generate(prompt, examples[index].image[None], max_new_tokens=run.longest)
                (given,) = [a.given for a in answered if (a.picture, a.question) == (picture, question)]
                assert given == run.tokenizer.decode(out.tokens[0].tolist())


def everything(model: MultiModalMamba, batch: Batch, row: int, words: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every answer of up to two words."""
    text = batch.text[row][batch.prompt_mask[row]].tolist()
    image = batch.images[batch.image_of[row]][None]
    found = {}
    for length in range(3):
        for answer in itertools.product(words, repeat=length):
            ids = torch.tensor([[IMAGE, *text, *answer]])
            log = model(ids, image).logits[0, len(text) :, [END, *words]].log_softmax(-1)
            probability = sum(log[place, 1 + words.index(word)] for place, word in enumerate(answer)) + log[-1, 0]
            found[answer] = float(torch.as_tensor(probability).exp())
    return found


@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_answers(run: Run) -> None:
    torch.manual_seed(0)
    tokenizer = type(run.tokenizer).learn(["a b c"])
    words = tokenizer.encode("a b c")
    config = ModelConfig(dim=16, depth=1, image_size=16, encoder_dim=16, encoder_depth=1)
    model = new_model(config, len(tokenizer)).eval()
    model.embedding.weight.normal_(std=0.4)
    batch = Batch(
        torch.randn(2, 3, 16, 16),
        torch.tensor([[3, 0, 0], [5, 6, 3], [7, 3, 0]]),
        torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool(),
        torch.full((3, 3), -100),
        torch.tensor([1, 0, 1]),
    )
    found = write_answers(model, batch, tokenizer, longest=3, width=60)
    for row, answers in enumerate(found):
        wanted = everything(model, batch, row, words)
        assert len(answers) == 1 + 3 + 9 + 27  # those that have not ended yet are among them
        got = {answer.text: answer.probability for answer in answers}
        for answer, probability in wanted.items():
            text = tokenizer.decode(answer)
            assert got[text] == pytest.approx(probability, rel=1e-3, abs=1e-6)
        assert [a.probability for a in answers] == sorted((a.probability for a in answers), reverse=True)
        assert sum(a.probability for a in answers) == pytest.approx(1, rel=1e-3)
    narrow = write_answers(model, batch, tokenizer, longest=3, width=2)
    assert [len(answers) for answers in narrow] == [2, 2, 2]
    assert write_answers(model, batch, tokenizer, longest=3, width=60) == found


def test_a_beam_of_one_row_does_not_depend_on_others(run: Run) -> None:
    examples = Examples(read_metadata(run.config.data.test), run.tokenizer, 16)
    model = run.load_model()
    together = write_answers(model, collate([examples[0], examples[4]]), run.tokenizer, longest=run.longest, width=4)
    alone = [
        answers
        for index in (0, 4)
        for answers in write_answers(model, collate([examples[index]]), run.tokenizer, longest=run.longest, width=4)
    ]
    assert [[a.text for a in answers] for answers in together] == [[a.text for a in answers] for answers in alone]
    for one, other in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert one.probability == pytest.approx(other.probability, rel=1e-3)


def test_ask_for_a_caption(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(Path(run.config.data.test) / "5.png")
    assert main(["ask", str(run.folder), picture, "--top", "1"]) == 0
    assert "dark blue above, light blue below." in capsys.readouterr().out
    assert main(["ask", str(run.folder), picture, "what's above?"]) == 0
    assert "dark blue " in capsys.readouterr().out


def test_only_captions(tmp_path: Path, quiet: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_captions(tmp_path / "pictures", 6, questions=False)
    sizes = ["--model.dim=16", "--model.image_size=16", "--model.encoder_dim=16", "--model.encoder_depth=1"]
    out = str(tmp_path / "run")
    assert main(["train", "--data.train", str(folder), "--train.epochs=1", "--out", out, *sizes]) == 0
    shown = capsys.readouterr().out
    assert f"learn   {folder}: 5 pictures, 5 captions\n" in shown
    assert shown.endswith(f"ask it: mmm ask {out} PICTURE\n")
    report = (tmp_path / "run" / "report.html").read_text()
    assert 'class="question"' not in report


def test_no_question_and_no_captions(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = train(replace(config, train=replace(config.train, epochs=1)), tmp_path / "run", quiet)
    with pytest.raises(DataError) as caught:
        ask(run, tmp_path / "pictures" / "0.png")
    assert str(caught.value) == "question: at least one word was expected, got ''. This run has learnt no captions."
