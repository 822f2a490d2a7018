"""`mmm compare`: methods trained side by side, of which some fail, stop, go on and are reported."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open

import mmm_fusion
from mmm_block.origins import source
from mmm_train import Config, ConfigError, Interrupted, Run, RunError, Terminal, compare, compare_config, train
from mmm_train.cli import main
from mmm_train.cli.compare import compare_settings
from mmm_train.comparison import processes
from mmm_train.comparison.display import Board
from mmm_train.comparison.member import work
from mmm_train.comparison.plan import Member, Plan
from mmm_train.comparison.processes import Process, Processes
from mmm_train.evaluate import score

PLUGIN = '''
import mmm_fusion
from beside import MASKS

class Moody(mmm_fusion.ImageFirst):
    """Image tokens as they are, or none at all."""

    name = "moody"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.dim, self.image_dim = dim, image_dim

    def read(self, image, *, image_mask=None, image_grid=None):
        print("read")
        raise RuntimeError("no <b>luck</b>\\ntoday")
'''
MENDED = PLUGIN.replace(
    'raise RuntimeError("no <b>luck</b>\\ntoday")', "return mmm_fusion.ImageMemory(image, image_mask)"
)
TINY = {"dim": 16, "depth": 1, "d_state": 4, "heads": 2, "image_size": 16}
TINY |= {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2}
FLAGS = [f"--model.{name}={size}" for name, size in TINY.items()]
FLAGS += ["--data.train=pictures", "--data.test=test", "--epochs=2", "--train.batch=4", "--train.device=cpu"]
UP = {"method": "../up", "seed": 0, "source": {}, "failure": None}
HEADS = "settings under model: fusion method 'mlp': `heads` must divide dim = 16, got 3. Choose one of 1, 2, 4, 8, 16."
OPTIONS = (
    "model.fusion_options must be empty in a comparison, got {'pool': 'max'}. "
    "Options are those of one method. Leave them out."
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """Data, a plug-in that fails, and a comparison: stopped once, gone on with, and given a second seed of add."""
    folder = tmp_path_factory.mktemp("compare")
    make_folder(folder / "pictures", 12)
    make_folder(folder / "test", 5, seed=1)
    (folder / "moody.py").write_text(PLUGIN)
    (folder / "beside.py").write_text("MASKS = None")
    original = Board.step

    def stop(self: Board, member: Member, step: int, steps: int) -> None:
        if step == 4:  # within the second epoch of add
            raise KeyboardInterrupt
        original(self, member, step, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)  # the processes of the runs have it as well
        patch.setattr(mmm_fusion.local, "_here", {})
        with patch.context() as inner, redirect_stderr(io.StringIO()) as shown:
            inner.setattr(Board, "step", stop)
            assert main(["compare", "--fusion", "add,./moody.py", "--out", "out", "--jobs", "1", *FLAGS]) == 130
        message = "mmm: Stopped with 0 of 2 runs done, and saved. Go on with the same command.\n"
        assert shown.getvalue() == message
        assert [run["status"] for run in result()["runs"]] == ["open", "open"]
        assert (folder / "out" / "compare.html").exists()
        shutil.copy(folder / "out/add-seed0/metrics.jsonl", folder / "stopped.jsonl")
        assert main(["compare", "--fusion", "add,./moody.py", "--out", "out", *FLAGS]) == 1
        assert main(["compare", "--fusion", "add", "--seeds", "2", "--out", "out", *FLAGS]) == 1
    return folder


@pytest.fixture
def at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("COLUMNS", "100")
    return place


@pytest.fixture
def config(place: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What FLAGS say."""
    monkeypatch.chdir(place)
    data, train = {"train": "pictures", "test": "test"}, {"epochs": 2, "batch": 4, "evaluate": 2, "device": "cpu"}
    return Config.from_dict({"data": data, "model": TINY, "train": train})


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(processes.Processes, "start", start)


def result(folder: str = "out") -> dict[str, object]:
    return json.loads((Path(folder) / "compare.json").read_text())


def test_compare_json(at: Path, config: Config) -> None:
    found = result()
    assert list(found) == ["version", "settings", "data", "packages", "question_only", "summary", "not_loaded", "runs"]
    assert found["settings"]["train"]["epochs"] == 2
    assert "fusion" not in found["settings"]["model"]
    assert "seed" not in found["settings"]["train"]
    assert {key: found["data"]["test"][key] for key in ("name", "pictures", "questions")} == {
        "name": "test",
        "pictures": 5,
        "questions": 10,
    }
    assert found["packages"]["torch"] == torch.__version__
    runs = {(run["method"], run["seed"]): run for run in found["runs"]}
    assert list(runs) == [("add", 0), ("moody", 0), ("add", 1)]
    assert [run["status"] for run in runs.values()] == ["done", "failed", "done"]
    add = runs["add", 1]
    assert add["source"] == {"distribution": "mmm-fusion", "version": version("mmm-fusion")}
    assert (add["folder"], add["failure"]) == ("add-seed1", None)
    assert add["measured"].keys() == {
        "accuracy",
        "parameters",
        "fusion_parameters",
        "images_per_second",
        "tokens",
        "tokens_once",
        "peak_memory",
        "ms_per_answer",
        "ms_single",
        "machine",
    }
    assert add["measured"]["machine"].keys() == {"cpu", "threads", "device"}
    lines = [json.loads(line) for line in (at / "out" / "add-seed1" / "metrics.jsonl").read_text().splitlines()]
    assert [add["measured"]["accuracy"]] == [line["test"] for line in lines if "test" in line]
    # Image, three or four words, question mark and answer-start make 6 or 7 tokens; add leaves none of the image.
    assert (add["measured"]["tokens"], add["measured"]["tokens_once"]) == (6.5, 1)
    assert 2**26 < add["measured"]["peak_memory"] < 2**33
    assert all(add["measured"][name] > 0 for name in ("images_per_second", "ms_per_answer", "ms_single"))
    failed = runs["moody", 0]
    assert failed["source"] == {"place": "moody.py", "sha256": hashlib.sha256(PLUGIN.encode()).hexdigest()}
    assert (failed["failure"], failed["measured"]) == ("RuntimeError: no <b>luck</b> today", None)


def test_the_summary_is_the_mean_over_the_seeds(at: Path) -> None:
    found = result()
    assert list(found["summary"]) == ["question only", "add", "moody"]
    assert found["summary"]["question only"]["all"]["mean"] == found["question_only"]["all"]
    speeds = [run["measured"]["images_per_second"] for run in found["runs"] if run["method"] == "add"]
    assert found["summary"]["add"]["images_per_second"] == {
        "mean": pytest.approx(sum(speeds) / 2),
        "min": min(speeds),
        "max": max(speeds),
        "runs": 2,
    }
    assert set(found["summary"]["moody"].values()) == {None}


def test_the_page_needs_no_other_file(at: Path) -> None:
    page = (at / "out" / "compare.html").read_text()
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", page)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "http" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert "moody</b>, seed 0: RuntimeError: no &lt;b&gt;luck&lt;/b&gt; today" in page
    rows = re.findall(r"<tr><td>([a-z_ ]+)", page)
    assert rows == ["question only", "add", "moody"]
    with Image.open(at / "out" / "compare.png") as image:
        assert image.size[0] > 1000


def test_the_log_has_what_a_failed_run_printed(at: Path) -> None:
    assert (at / "out" / "moody-seed0.log").read_text().startswith("read\nTraceback (most recent call last):\n")
    assert not (at / "out" / "add-seed0.log").exists()


def test_its_runs_are_ordinary_ones(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "out/add-seed1"]) == 0
    shown = capsys.readouterr().out
    share = result()["runs"][2]["measured"]["accuracy"]["all"]
    assert re.search(rf"add\W+{100 * share:.1f} %", shown)
    settings = json.loads((at / "out" / "add-seed1" / "run.json").read_text())["settings"]
    assert (settings["model"]["fusion"], settings["train"]["seed"]) == ("add", 1)


def test_what_is_done_stays_and_is_shown_again(at: Path, no_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (at / "out").rglob("*.json")}
    assert main(["compare", "--fusion", "add", "--seeds", "2", "--out", "out", *FLAGS]) == 1
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[2] == "train 1 method, 2 seeds, 2 epochs; 2 of 2 runs are done"
    assert any(line.startswith("question only ") for line in shown)
    assert "failed: moody seed 0: RuntimeError: no <b>luck</b> today" in shown
    assert shown[-1] == "report: out/compare.html"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.lr=0.5"], "train.lr was 0.0003, is 0.5."),
        (["--model.dim=32", "--train.evaluate=1"], "model.dim was 16, is 32; train.evaluate was 2, is 1."),
        (["--data.test=pictures"], "data.test was test, is pictures; data.test.name was test, is pictures; "),
    ],
    ids=["one", "two", "data"],
)
def test_other_settings_are_refused(
    at: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["compare", "--fusion", "add", "--out", "out", *FLAGS, *flags]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"mmm: out: holds a comparison with other settings: {message}")
    assert text.endswith(" Use those of the first time, or choose another --out.\n")


def test_stopped_it_goes_on_as_if_it_had_not(at: Path, config: Config, quiet: Terminal) -> None:
    before = Path("stopped.jsonl").read_text()
    assert 3 <= json.loads(before.splitlines()[-1])["step"] <= 6
    assert Path("out/add-seed0/metrics.jsonl").read_text().startswith(before)
    train(replace(config, model=replace(config.model, fusion="add")), at / "whole", quiet)
    for name in ("model.safetensors", "training.safetensors"):
        assert (at / "out" / "add-seed0" / name).read_bytes() == (at / "whole" / name).read_bytes()


def test_a_mended_method_is_tried_again(at: Path, config: Config, quiet: Terminal) -> None:
    shutil.copytree("out", "again")
    Path("again/moody-seed0/old").touch()
    Path("moody.py").write_text(MENDED)
    try:
        found = compare(["moody"], config, "again", plugins=["moody.py"], terminal=quiet)
    finally:
        Path("moody.py").write_text(PLUGIN)
    assert found.failed == ()
    before, now = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (MENDED, PLUGIN))
    for seed in (0, 1):  # one mean is not to be of two methods
        later = replace(config, train=replace(config.train, seed=seed))
        with pytest.raises(RunError) as caught:
            compare(["moody"], later, "again", plugins=["moody.py"], terminal=quiet)
        assert str(caught.value) == (
            f"again/moody-seed0: was trained with 'moody' of moody.py (sha256 {before}), it is now of moody.py "
            f"(sha256 {now}). Remove this folder to train it anew, or choose another --out."
        )
    assert not Path("again/moody-seed0/old").exists()  # it began anew
    moody = next(row for row in found.rows if row.name == "moody")
    assert (moody.values["tokens"].mean, moody.values["tokens_once"].mean) == (10.5, 5)
    assert [run["status"] for run in result("again")["runs"]] == ["done", "done", "done"]
    assert set(Path("again/moody-seed0.log").read_text().split()) == {"read"}


def test_a_run_of_a_method_that_has_changed_begins_anew(at: Path, config: Config) -> None:
    own = replace(config, model=replace(config.model, fusion="changing"))
    file, folder = Path("changing.py"), Path("changing")

    def write_and_work(text: str, origin: dict[str, str] | None = None) -> list[int]:
        file.write_text(text.replace("moody", "changing"))
        mmm_fusion.load_file(file)
        events: list[dict[str, int]] = []
        work(folder, own, origin or source("changing"), lambda **event: events.append(event))
        return [event["step"] for event in events if event["event"] == "step"]

    assert write_and_work(MENDED)[0] == 0
    old = source("changing")
    (folder / "measured.json").unlink()
    assert write_and_work(MENDED) == [6]  # all steps are done
    assert write_and_work(MENDED + "# changed")[0] == 0
    assert Run.open(folder).source == source("changing") != old
    with pytest.raises(RunError) as caught:
        write_and_work(PLUGIN, old)
    assert str(caught.value) == "fusion method 'changing' was changed while it was compared. Compare again."


def test_a_failed_run_that_cannot_be_removed(at: Path, config: Config, quiet: Terminal, no_process: None) -> None:
    shutil.copytree("out", "kept")
    shutil.rmtree("kept/moody-seed0")
    Path("kept/moody-seed0").touch()  # not a folder
    with pytest.raises(NotADirectoryError):
        compare(["moody"], config, "kept", plugins=["moody.py"], terminal=quiet)


def test_a_method_of_this_process_alone(at: Path, config: Config, quiet: Terminal) -> None:
    (moody,) = mmm_fusion.load_file("moody.py")
    mmm_fusion.register(type("Session", (moody,), {"name": "session"}))
    with pytest.raises(ConfigError) as caught:
        compare(["add", "session"], config, "session", terminal=quiet)
    assert str(caught.value) == (
        "fusion method 'session' is a class of this process, and each run has a process of its own. "
        "Write it to a file, and name that in `plugins`."
    )
    assert not Path("session").exists()


def test_a_file_that_is_loaded_already(
    at: Path, config: Config, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def start(_: Processes, job: dict[str, object], log: Path) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes.Processes, "start", start)
    mmm_fusion.load_file("moody.py")
    with pytest.raises(Interrupted):
        compare(["moody"], config, "loaded", terminal=quiet)
    with pytest.raises(Interrupted):
        compare(["add"], config, "loaded", terminal=quiet)
    assert [job["plugin"] for job in jobs] == [str(at / "moody.py"), None]


def test_a_file_is_run_once(at: Path) -> None:
    Path("counted.py").write_text(
        "with open('ran', 'a') as file:\n    file.write('x')\n" + PLUGIN.replace("moody", "counted")
    )
    assert main(["compare", "--fusion", "all,./counted.py", "--out", "new", *FLAGS, "--seeds", "0"]) == 2
    assert Path("ran").read_text() == "x"


def test_a_process_that_ends_without_a_word(
    at: Path, config: Config, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", "input()"])
    (_, row) = compare(["add"], config, "silent", terminal=quiet).rows
    assert row.failures == {0: "ended before it was done."}


def test_reasons_and_folders_that_no_terminal_takes(at: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of characters, as file names that are no UTF-8 have them; control characters; and too much."""
    told = {"event": "failed", "reason": "a \udcff \x1b]0;" + "b" * 999}
    tell = f"print({json.dumps(told)!r})"
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", "input(); " + tell])
    shown, folder = io.StringIO(), os.fsdecode(b"bad\xff")
    (_, row) = compare(["add"], config, folder, terminal=Terminal(Console(file=shown))).rows
    (reason,) = row.failures.values()
    assert reason == r"a \udcff \x1b]0;" + "b" * 484 + " …"
    assert r"folder  bad\udcff" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()
    assert r"<title>bad\udcff: " in (Path(folder) / "compare.html").read_text(encoding="utf-8")
    assert result(folder)["runs"][0]["failure"] == reason


def test_a_plugin_that_raises_what_ctrl_c_does(at: Path, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("raise KeyboardInterrupt")
    job = {"folder": "", "threads": 1, "settings": {}, "source": {}, "path": sys.path}
    with Processes() as running:
        process = running.start({**job, "plugin": str(tmp_path / "stop.py")}, tmp_path / "log")
        assert running.next_event() == (process, "failed", {"reason": "KeyboardInterrupt"})
        assert running.next_event() == (process, "ended", {})
    assert (tmp_path / "log").read_text().startswith("Traceback")


def test_what_was_killed_can_go_on(at: Path, config: Config, quiet: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(processes.Processes, "start", killed)
        with pytest.raises(SystemExit):
            compare(["add"], config, "killed", terminal=quiet)
    assert [run["status"] for run in result("killed")["runs"]] == ["open"]


def test_a_second_comparison_in_the_folder_is_refused(at: Path, config: Config, quiet: Terminal) -> None:
    with Plan(Path("out"), {}, score([])).claimed(), pytest.raises(RunError) as caught:
        compare(["add"], config, "out", terminal=quiet)
    assert str(caught.value) == "out: another process compares there. Wait for it, or choose another --out."


def test_the_folder_is_taken_until_the_last_run_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the comparison was killed, and its runs are about to save."""
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", "import sys; sys.stdin.read()"])
    plan = Plan(tmp_path / "plan", {}, score([]))
    with plan.claimed() as lock:
        process = Process({}, tmp_path / "log", lock)
    with pytest.raises(RunError, match="another process compares there"), plan.claimed():
        pass
    process.ask_to_stop()
    assert process.process.wait() == 0
    process.output.close()
    with plan.claimed():
        pass


def test_runs_that_another_comparison_began_meanwhile(tmp_path: Path) -> None:
    first, second = (Plan(tmp_path, {}, score([])) for _ in range(2))
    first.add({"add": {}}, [0])
    with second.claimed():
        second.add({"mlp": {}}, [0])
        second.save({})
    with first.claimed():
        first.add({"add": {}}, [0])
        assert [member.name for member in first.members] == ["mlp-seed0", "add-seed0"]


def test_errors_of_what_is_done_in_the_folder_are_not_taken_for_a_rival(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), Plan(tmp_path, {}, score([])).claimed():
        raise BlockingIOError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fusion", "ad"], "fusion method 'ad' is not registered. Did you mean 'add'? See `python -m mmm_fusion`."),
        (["--fusion", ","], "--fusion must be all, or methods with commas between them, got nothing."),
        (["--seeds", "0"], "seeds must be 1 or more, got 0."),
        (["--jobs", "0"], "jobs must be 1 or more, got 0."),
        (["--epochs", "0"], "train.epochs must be 1 or more, got 0."),
        (["--model.heads", "3"], HEADS),
        (["--data.train", "x"], "x/metadata.csv: a metadata file was expected; No such file or directory."),
        (["--out", "pictures"], "pictures: a new or empty folder was expected, or a comparison. Choose another --out."),
        (["--model.fusion", "add"], "unrecognized arguments: --model.fusion add."),
        (["--config", "a.yaml"], OPTIONS),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_come_before_anything_is_written(
    at: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    Path("a.yaml").write_text("model: {fusion_options: {pool: max}}")
    before = sorted(Path().rglob("*"))
    assert main(["compare", "--fusion", "add", "--out", "new", *FLAGS, *flags]) == 2
    assert capsys.readouterr() == ("", f"mmm: {message}\n")
    assert sorted(Path().rglob("*")) == before


def test_settings_of_easy_vqa_and_of_own_data() -> None:
    assert compare_settings({}, None) == compare_config()
    assert compare_settings({}, 3) == compare_config(epochs=3)
    assert compare_settings({"train": {"evaluate": 2}}, 3).train.evaluate == 2
    easy = compare_settings({"data": {"train": "easy-vqa"}, "train": {"lr": 0.5}}, 3)
    assert (easy.data, easy.train.lr, easy.train.epochs) == (compare_config().data, 0.5, 3)
    own = compare_settings({"data": {"train": "shop"}, "train": {"epochs": 7}}, None)
    assert own == Config.from_dict({"data": {"train": "shop"}, "train": {"epochs": 7, "evaluate": 7}})
    assert not own.data.flip


def test_a_damaged_folder(at: Path, config: Config, quiet: Terminal) -> None:
    found = result()
    Path("damaged").mkdir()
    for change, expected in [
        ({"version": 2}, "version 1 was expected, got 2. Choose another --out."),
        ({"runs": [{}]}, "damaged: KeyError('method'). Restore it, or choose another --out."),
        ({"runs": [UP]}, "damaged: ValueError('../up-seed0'). Restore it, or choose another --out."),
    ]:
        Path("damaged/compare.json").write_text(json.dumps({**found, **change}))
        with pytest.raises(RunError) as caught:
            compare(["add"], config, "damaged", terminal=quiet)
        assert str(caught.value) == f"damaged/compare.json: {expected}"
    Path("damaged/compare.json").write_text(json.dumps(found))
    Path("damaged/add-seed0").mkdir()
    measured = found["runs"][0]["measured"]
    without = {name: value for name, value in measured.items() if name != "tokens_once"}
    for content, wrong in [
        (without, "'tokens_once'"),
        ({**measured, "tokens": "8", "machine": {"cpu": "some"}}, "tokens, threads"),
    ]:
        Path("damaged/add-seed0/measured.json").write_text(json.dumps(content))
        with pytest.raises(RunError) as caught:
            compare(["add"], config, "damaged", terminal=quiet)
        assert str(caught.value) == (
            f"damaged/add-seed0/measured.json: damaged: {wrong}. Remove damaged/add-seed0 to train it anew."
        )


def test_a_run_saves_when_whoever_started_it_is_gone(at: Path, config: Config) -> None:
    long = replace(config, model=replace(config.model, fusion="add"), train=replace(config.train, epochs=100000))
    job = {
        "folder": "orphan",
        "threads": 1,
        "settings": long.to_dict(),
        "plugin": None,
        "source": source("add"),
        "path": sys.path,
    }
    process = subprocess.Popen(
        processes.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        for _ in range(9):
            assert json.loads(process.stdout.readline())["event"] == "step"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 130
    with safe_open("orphan/training.safetensors", "pt") as file:
        saved = json.loads(file.metadata()["note"])["step"]
    assert saved == json.loads(Path("orphan/metrics.jsonl").read_text().splitlines()[-1])["step"]
