"""What a comparison shows: rows, table, plot and live line, from a plan made by hand."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import mmm_fusion
from mmm_train import Terminal
from mmm_train.comparison.display import Board, show
from mmm_train.comparison.plan import Member, Plan
from mmm_train.comparison.report import draw, write_report
from mmm_train.comparison.summary import Spread, as_json, summarise
from mmm_train.evaluate import score

ONE = {"all": 0.5, "yes_no": 0.75, "open": 0.25}
MEASURED = {
    "parameters": 1000,
    "fusion_parameters": 10,
    "images_per_second": 20.0,
    "tokens": 8.0,
    "tokens_once": 4.0,
    "peak_memory": 2**28,
    "ms_per_answer": 0.25,
    "ms_single": 3.0,
    "machine": {"cpu": "some", "threads": 1, "device": "cpu"},
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three methods: one with two seeds, one with one of two, one that failed."""
    data = {"name": "data", "pictures": 1, "questions": 1}
    common = {"settings": {"train": {"epochs": 1}}, "data": {"train": data, "test": data}, "packages": {}}
    better = {name: 2 * part if part < 0.5 else part for name, part in ONE.items()}
    blind = [("yes", "yes"), ("yes", "no"), ("red", "blue"), ("red", "red")]
    members = [
        Member("slow", 0, measured={"accuracy": ONE, **MEASURED}),
        Member("fast", 0, measured={"accuracy": better, **MEASURED, "images_per_second": 90.0, "peak_memory": None}),
        Member("bad", 0, failure="ValueError: no"),
        Member("slow", 1, measured={"accuracy": ONE | {"open": 0.35}, **MEASURED}),
        Member("fast", 1),
    ]
    return Plan(tmp_path, common, score(blind), members)


def test_rows(plan: Plan) -> None:
    found = summarise(plan)
    assert [row.name for row in found.rows] == ["question only", "fast", "slow", "bad"]
    assert [row.open for row in found.rows] == [(), (1,), (), ()]
    blind, fast, slow, bad = found.rows
    assert blind.values == {name: Spread(0.5, 0.5, 0.5, 1) for name in ("all", "yes_no", "open")}
    assert slow.values["open"] == Spread(pytest.approx(0.3), 0.25, 0.35, 2)
    assert fast.values["peak_memory"] is None
    assert (found.seeds, found.failed) == (2, (bad,))
    assert as_json([fast])["fast"]["images_per_second"] == {"mean": 90, "min": 90, "max": 90, "runs": 1}


def test_the_table_in_a_narrow_terminal(plan: Plan) -> None:
    plan.members.append(Member("cross_attention", 0, measured={"accuracy": dict.fromkeys(ONE, 1.0), **MEASURED}))
    shown = io.StringIO()
    show(summarise(plan), Terminal(Console(file=shown, width=80)))
    lines = shown.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines[: lines.index("failed: bad seed 0: ValueError: no")])
    assert "…" not in shown.getvalue()
    cells = [line.split() for line in lines]
    assert ["slow", "50.0", "75.0", "30.0", "20", "8", "256", "0.25", "3.0"] in cells
    assert ["±5.0"] in cells
    assert "Means of 2 seeds; ±: how far the farthest seed is from the mean." in lines


def test_plugins_that_do_not_load_are_named(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = mmm_fusion.Failure(mmm_fusion.Source("acme-fusion", "0.2"), ImportError("no <b>luck</b>"))
    monkeypatch.setattr(mmm_fusion, "failures", lambda: (failure,))
    plan.save({})
    assert json.loads((plan.folder / "compare.json").read_text())["not_loaded"] == [
        "acme-fusion 0.2 (ImportError: no <b>luck</b>)"
    ]
    write_report(summarise(plan))
    page = (plan.folder / "compare.html").read_text()
    assert "acme-fusion 0.2 (ImportError: no &lt;b&gt;luck&lt;/b&gt;)" in page


def test_the_plot(plan: Plan) -> None:
    def size(plan: Plan) -> tuple[int, int]:
        with Image.open(io.BytesIO(draw(summarise(plan)))) as image:
            return image.size

    narrow = size(plan)
    plan.members += [Member(f"method{n}", 0, measured={"accuracy": ONE, **MEASURED}) for n in range(8)]
    assert size(plan)[1] > narrow[1]
    plan.members.clear()
    assert size(plan) == narrow


def test_data_without_open_questions(plan: Plan) -> None:
    plan.question_only = score([("yes", "no")])
    for member in plan.members:
        if member.measured:
            member.measured["accuracy"] = {"all": 0.5 + 0.1 * (member.method == "slow"), "yes_no": 0.5, "open": None}
    found = summarise(plan)
    assert [row.name for row in found.rows] == ["question only", "slow", "fast", "bad"]
    assert draw(found)
    write_report(found)
    assert "<td>–</td>" in (plan.folder / "compare.html").read_text()


def test_the_live_line_counts_the_steps_that_are_left() -> None:
    members = [Member("add", 0), Member("concat", 0), Member("mlp", 0)]
    shown = io.StringIO()
    terminal = Terminal(Console(file=shown, force_terminal=True, width=120))
    with Board(terminal, 4, members) as board:
        task = board.bars.tasks[0]
        board.begin(members[0])
        board.step(members[0], 40, 100)  # goes on from there
        board.step(members[0], 50, 100)
        assert (task.completed, task.total) == (10, 60 + 200)
        board.begin(members[1])
        board.step(members[1], 0, 100)
        assert (task.completed, task.total) == (10, 60 + 200)
        board.step(members[1], 30, 100)
        assert (task.completed, task.total) == (40, 60 + 200)
        members[0].failure = "no luck"
        board.end(members[0])
        board.step(members[1], 31, 100)
        assert (task.completed, task.total) == (41, 10 + 200)
        board.bars.refresh()
    text = Console(file=io.StringIO()).render_str(shown.getvalue()).plain
    for part in ("run 3/4", "concat seed 0", "step 41/210", "left", "0:00", "failed: no luck"):
        assert part in text
