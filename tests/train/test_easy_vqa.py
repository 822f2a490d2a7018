"""The real easy-vqa: its files, its official split, and what can be known without looking."""

import importlib.util
import sys

import pytest

from mmm_train import DataError, QuestionOnly, read_easy_vqa, score


@pytest.mark.parametrize(("part", "pictures", "questions"), [("train", 4000, 38575), ("test", 1000, 9673)])
def test_official_split(part: str, pictures: int, questions: int) -> None:
    data = read_easy_vqa(part)
    assert data.name == f"easy-vqa {part}"
    assert len(data.pictures) == pictures
    assert sum(1 for _ in data.questions) == questions
    assert all(picture.path.parent.parts[-2:] == (part, "images") for picture in data.pictures)
    assert all(picture.path.is_file() for picture in data.pictures)
    assert len({question.answer for question in data.questions}) == 13


def test_the_package_is_read_and_not_imported() -> None:
    before = set(sys.modules)
    read_easy_vqa("test")
    assert {"easy_vqa", "test"} & (set(sys.modules) - before) == set()


def test_question_only_reaches_what_is_known() -> None:
    blind = QuestionOnly.learn(read_easy_vqa("train"))
    scores = score((question.answer, blind(question.text)) for question in read_easy_vqa("test").questions)
    assert 100 * scores.all.part == pytest.approx(67.0, abs=0.05)
    assert 100 * scores.open.part == pytest.approx(23.3, abs=0.05)
    assert (scores.yes_no.asked, scores.open.asked) == (7136, 2537)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        read_easy_vqa("train")
    assert str(caught.value) == 'easy-vqa is not installed. Install it with: pip install "mmm-train[demo]"'
