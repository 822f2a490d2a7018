"""The report: one safe page that needs no other file, and the curves."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from mmm_train import Config, DataConfig, Picture, Question, QuestionSet, Run, score
from mmm_train.evaluate import Answered
from mmm_train.report import draw_curves, write_report

METRICS = [
    {"step": 1, "epoch": 1, "loss": 2.0, "lr": 0.1},
    {"step": 2, "epoch": 1, "loss": 1.0, "lr": 0.1},
    {"step": 2, "epoch": 1, "test": {"all": 0.5, "yes_no": None, "open": 0.5}},
]
EVIL = "<script>alert('what?')</script>"


@pytest.fixture
def page(tmp_path: Path) -> str:
    picture = Picture(tmp_path / "<b>.png", (Question(EVIL, "<i>red</i>"), Question("plain?", "blue")))
    Image.new("RGB", (500, 300), "red").save(picture.path)
    data = QuestionSet("some", (picture,))
    run = Run.plan(tmp_path / "run", Config(data=DataConfig(train="<u>pictures</u>")), data)
    run.create()
    for line in METRICS:
        run.record(**line)
    first, second = picture.questions
    answered = [Answered(picture, first, "<i>blue</i>", 0.75), Answered(picture, second, "blue", 0.5)]
    scores = score((each.question.answer, each.given) for each in answered)
    write_report(run, {"question only": scores, "mlp": scores}, answered)
    return (tmp_path / "run" / "report.html").read_text()


def test_what_users_wrote_is_text_and_never_markup(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;what?&#39;)&lt;/script&gt;" in page
    assert not re.search(r"<[biu]>", re.sub(r"<b>[✓✗]|<i>expected", "", page))


def test_no_other_file_is_needed(page: str) -> None:
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "url(" not in page


def test_wrong_answers_are_marked(page: str) -> None:
    sample, mistakes = page.split("<h2>Mistakes</h2>")
    assert sample.count('<li class="wrong">') == 1
    assert sample.count('<li class="right">') == 1
    assert mistakes.count('<li class="wrong">') == 1
    assert mistakes.count('<li class="right">') == 0
    assert "✗ &lt;i&gt;blue&lt;/i&gt;</b> 75 %; <i>expected: &lt;i&gt;red&lt;/i&gt;</i>" in sample
    assert "<td>50.0 %</td>" in page


def test_curves() -> None:
    scores = score([("red", "red"), ("blue", "red")])
    picture = Image.open(io.BytesIO(draw_curves(METRICS, scores)))
    assert picture.format == "PNG"
    assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10
