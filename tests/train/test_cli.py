"""The `mmm` command: what it prints, how it ends, and that YAML and flags mean the same."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmm_train.training
from mmm_train import Config, demo_config
from mmm_train.cli import COMMANDS, main

SIZES = {"dim": 16, "depth": 1, "d_state": 4, "heads": 2, "image_size": 16}
SIZES |= {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2}
TINY = [*(f"--model.{name}={size}" for name, size in SIZES.items()), "--train.batch=4", "--train.device=cpu"]
YAML = """
data: {{train: {folder}, holdout: 0.25}}
model:
  dim: 16
  depth: 1
  d_state: 4
  heads: 2
  image_size: 16
  encoder_dim: 16
  encoder_depth: 1
  encoder_heads: 2
train: {{batch: 4, epochs: 9, lr: 1e-2, device: cpu}}
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def mmm(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return run


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, mmm: Command) -> str:
    assert mmm("train", "--data.train", "pictures", "--train.epochs", "1", "--out", "run", *TINY)[0] == 0
    return "run"


def settings(run: str) -> dict[str, dict[str, object]]:
    return json.loads((Path(run) / "run.json").read_text())["settings"]


def test_train_eval_ask(folder: Path, mmm: Command) -> None:
    status, out, err = mmm("train", "--data.train", "pictures", "--train.epochs", "2", *TINY)
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:2] == [
        "learn pictures: 11 pictures, 22 questions",
        "test pictures (held out): 1 pictures, 2 questions",
    ]
    assert lines[3] == "run runs/train"
    assert [line[:12] for line in lines[4:6]] == ["epoch 1 loss", "epoch 2 loss"]
    table = out.partition("Accuracy on the test pictures")[2]
    assert "question only" in table
    assert "mlp" in table
    assert lines[-2:] == ["report: runs/train/report.html", 'ask it: mmm ask runs/train PICTURE "QUESTION"']

    status, out, err = mmm("eval", "runs/train")
    assert (status, err) == (0, "")
    assert out.partition("Accuracy on the test pictures")[2] == table.partition("report:")[0]

    status, out, err = mmm("ask", "runs/train", "pictures/0.png", "what purple colour?", "--top", "2")
    assert (status, err) == (0, "")
    assert out.startswith("The training texts do not have: purple.\n")
    assert out.count(" % ") == 2


def test_the_first_free_folder_is_taken(folder: Path, mmm: Command) -> None:
    for _ in range(3):
        assert mmm("train", "--data.train", "pictures", "--train.epochs", "1", *TINY)[0] == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["train", "train-2", "train-3"]


def test_yaml_and_flags_mean_the_same(folder: Path, mmm: Command) -> None:
    Path("a.yaml").write_text(YAML.format(folder=folder))
    assert mmm("train", "--config", "a.yaml", "--train.epochs", "1", "--out", "a")[0] == 0
    flags = ["--data.train", str(folder), "--data.holdout=0.25", "--train.epochs=1", "--train.lr=0.01"]
    assert mmm("train", *flags, *TINY, "--out", "b")[0] == 0
    assert settings("a") == settings("b")
    assert settings("a")["train"]["epochs"] == 1
    assert (Path("a") / "model.safetensors").read_bytes() == (Path("b") / "model.safetensors").read_bytes()
    assert mmm("eval", "a", "--config", "a.yaml")[1] == mmm("eval", "b")[1]


def test_eval_on_other_pictures(run: str, folder: Path, mmm: Command) -> None:
    status, out, _ = mmm("eval", run, "--data.test", "pictures")
    assert status == 0
    assert "24" in out
    folder.rename("moved")
    assert mmm("eval", run, "--data.test", "moved")[1] == out


def test_eval_keeps_the_model(run: str, mmm: Command) -> None:
    assert mmm("eval", run, "--model.depth", "1")[0] == 0
    status, _, err = mmm("eval", run, "--model.depth", "3")
    assert (status, err) == (2, "mmm: model.depth of run is 1, got 3. Leave it out, or train anew.\n")


DEVICE = "train.device = meta: Tensor.item() cannot be called on meta tensors. Use auto or cpu."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "data.train must be a folder with a metadata.csv, or easy-vqa, got nothing."),
        ("train --config a.yaml", "a.yaml: unknown key 'model.dpth'. Did you mean 'model.depth'?"),
        ("train --config b.yaml", "b.yaml: model.dim: expected int, got wide."),
        ("train --data.train pictures --model.dim 1.5", "model.dim: expected int, got 1.5."),
        ("train --data.train pictures --model.dpth 1", "unrecognized arguments: --model.dpth 1."),
        ("train --data.train pictures --train.epoch=2", "unrecognized arguments: --train.epoch=2."),
        ("train --data.train x", "x/metadata.csv: a metadata file was expected; No such file or directory."),
        ("train --resume x", "x: not a run folder, it has no run.json."),
        (
            "train --resume x --train.lr 1",
            "--resume goes on with the settings of the run. Leave out all others.",
        ),
        (
            "demo --fusion conct",
            "fusion method 'conct' is not registered. Did you mean 'concat'? See `python -m mmm_fusion`.",
        ),
        ("demo --epochs 0", "train.epochs must be 1 or more, got 0."),
        ("train --data.train pictures --train.device=meta", DEVICE),
        ("eval x", "x: not a run folder, it has no run.json."),
        ("ask x a.png what?", "x: not a run folder, it has no run.json."),
    ],
)
def test_errors_are_one_line(folder: Path, mmm: Command, arguments: str, message: str) -> None:
    Path("a.yaml").write_text("model: {dpth: 1}")
    Path("b.yaml").write_text("data: {train: pictures}\nmodel: {dim: wide}")
    before = sorted(Path().rglob("*"))
    assert mmm(*arguments.split()) == (2, "", f"mmm: {message}\n")
    assert sorted(Path().rglob("*")) == before


def test_errors_of_a_run(run: str, mmm: Command) -> None:
    Path("broken.png").write_bytes((Path("pictures") / "0.png").read_bytes()[:50])
    status, out, err = mmm("ask", run, "broken.png", "what?")
    assert (status, out) == (2, "")
    assert err.startswith("mmm: broken.png: a picture was expected, got ")
    assert mmm("ask", run, "pictures/0.png", "")[0] == 2
    (Path(run) / "model.safetensors").unlink()
    message = "model.safetensors was expected, got none. Name a folder that save_pretrained wrote."
    assert mmm("eval", run) == (2, "", f"mmm: run: {message}\n")


def test_a_folder_that_cannot_be_made(folder: Path, mmm: Command) -> None:
    Path("file").write_text("")
    status, out, err = mmm("train", "--data.train", "pictures", "--out", "file/run", *TINY)
    assert (status, out, err) == (2, "", "mmm: [Errno 20] Not a directory: 'file/run'.\n")


def test_help_and_version(mmm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = mmm()
    assert status == 0
    assert all(name in out for name in COMMANDS)
    for arguments in (["--version"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert capsys.readouterr().out
    assert mmm("fit")[0] == 2


def test_demo_takes_every_option(monkeypatch: pytest.MonkeyPatch, mmm: Command) -> None:
    seen: list[tuple[Config, Path]] = []
    monkeypatch.setattr(mmm_train.training, "train", lambda config, folder: seen.append((config, folder)))
    assert mmm("demo")[0] == 0
    assert mmm(*["demo", "--fusion", "concat", "--epochs", "3", "--seed", "5", "--out", "x"])[0] == 0
    (first, folder), (second, out) = seen
    assert (first, folder) == (demo_config(), Path("runs/demo"))
    assert (first.data.train, first.model.fusion, first.train.epochs) == ("easy-vqa", "mlp", 32)
    assert (second.model.fusion, second.train.epochs, second.train.seed, out) == ("concat", 3, 5, Path("x"))


def test_ctrl_c_saves_and_says_how_to_go_on(folder: Path, mmm: Command) -> None:
    program = [sys.executable, "-m", "mmm_train", "train", "--data.train", "pictures", "--out", "my run", *TINY]
    process = subprocess.Popen(
        [*program, "--train.epochs", "100000", "--train.evaluate", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("mmm: Stopped after step ")
    assert err.endswith(" of 300,000, and saved. Go on with: mmm train --resume 'my run'\n")
    about = json.loads((Path("my run") / "run.json").read_text())
    about["settings"]["train"]["epochs"] = 3  # so that going on ends soon
    (Path("my run") / "run.json").write_text(json.dumps(about))
    assert mmm("train", "--resume", "my run")[0] == 0
    assert (Path("my run") / "report.html").exists()
