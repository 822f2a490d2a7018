"""Counting right answers, and guessing them from the question alone."""

from pathlib import Path

from mmm_train import Picture, Question, QuestionOnly, QuestionSet, Share, score

YES, NO = "yes", "no"


def test_scores() -> None:
    scores = score([(YES, YES), (NO, YES), ("red", "red"), ("blue", NO), ("a", "b"), (YES, "red")])
    assert (scores.all, scores.yes_no, scores.open) == (Share(2, 6), Share(1, 3), Share(1, 3))
    assert scores.parts() == {"all": 2 / 6, "yes_no": 1 / 3, "open": 1 / 3}
    assert [str(share) for share in (Share(1, 3), Share(3, 3), Share(0, 0))] == ["33.3 %", "100.0 %", "–"]


def test_nothing_asked() -> None:
    assert score([("red", "red")]).parts() == {"all": 1.0, "yes_no": None, "open": 1.0}


def test_question_only_knows_the_most_frequent_answer() -> None:
    asked = [("what?", "red"), ("what?", "blue"), ("What?", "blue"), ("is it?", NO), ("why?", NO), ("how?", NO)]
    data = QuestionSet("some", (Picture(Path("a.png"), tuple(Question(*pair) for pair in asked)),))
    blind = QuestionOnly.learn(data)
    assert [blind("WHAT?"), blind("is it?"), blind("never asked")] == ["blue", NO, NO]
