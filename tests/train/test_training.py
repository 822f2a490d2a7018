"""A training from settings to report: it learns, it resumes bit by bit, and it leaves nothing half written."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmm_train.loop
from mmm_train import (
    Config,
    ConfigError,
    DataConfig,
    DataError,
    Interrupted,
    LossError,
    Run,
    RunError,
    Terminal,
    TrainConfig,
    ask,
    evaluate_run,
    resume,
    train,
)
from mmm_train.data.tokenizer import ANSWER
from mmm_train.evaluate import answer_all
from mmm_train.loop import Trainer

FILES = [
    "README.md",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "model.safetensors",
    "question_only.json",
    "report.html",
    "run.json",
    "tokenizer.json",
    "training.safetensors",
]


def without_speed(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_same(run: Path, other: Path) -> None:
    """The same result bit by bit; only the speed may differ."""
    for name in ("model.safetensors", "training.safetensors", "config.json", "run.json", "tokenizer.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert without_speed(run) == without_speed(other)


def test_learns_what_can_be_seen(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    long = replace(
        config, train=replace(config.train, epochs=25, evaluate=10), model=replace(config.model, dropout=0.0)
    )
    run = train(long, tmp_path / "run", quiet)
    assert sorted(path.name for path in run.folder.iterdir()) == FILES
    assert evaluate_run(run, quiet).parts() == {"all": 1.0, "yes_no": 1.0, "open": 1.0}
    lines = without_speed(run.folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 76))
    assert [line["epoch"] for line in lines if "test" in line] == [10, 20, 25]
    assert lines[-1]["test"] == {"all": 1.0, "yes_no": 1.0, "open": 1.0}
    assert ask(run, tmp_path / "pictures" / "1.png", "what colour IS it?")[0][0] == "green"
    answers = ask(Run.open(run.folder), tmp_path / "pictures" / "0.png", "is it red?")
    assert answers[0][0] == "yes"
    assert len(answers) == 5
    assert 0.9 < sum(probability for _, probability in answers) < 1 + 1e-6
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)


def test_run_json_says_what_was_done(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = train(config, tmp_path / "run", quiet)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["longest_answer"] == 2
    assert about["settings"] == config.to_dict()
    assert about["packages"]["torch"] == torch.__version__
    again = Run.open(tmp_path / "run")
    assert (again.config, again.longest, again.trained_on) == (run.config, 2, run.trained_on)


def test_the_seed_decides_alone(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    train(config, tmp_path / "a", quiet)
    torch.manual_seed(7)
    train(config, tmp_path / "b", quiet)
    assert_same(tmp_path / "a", tmp_path / "b")
    train(replace(config, train=replace(config.train, seed=1)), tmp_path / "c", quiet)
    a, c = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "c"))
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


@pytest.mark.parametrize("step", [1, 4, 6, 9], ids=["first", "middle", "end of an epoch", "last"])
def test_resumed_is_as_if_never_stopped(
    config: Config, tmp_path: Path, quiet: Terminal, stop_at: Callable[[int], None], step: int
) -> None:
    train(config, tmp_path / "whole", quiet)
    stop_at(step)
    with pytest.raises(Interrupted) as caught:
        train(config, tmp_path / "parts", quiet)
    assert str(caught.value) == (
        f"Stopped after step {step} of 9, and saved. Go on with: mmm train --resume {tmp_path / 'parts'}"
    )
    assert without_speed(tmp_path / "parts")[-1]["step"] == step
    assert not (tmp_path / "parts" / "report.html").exists()
    resume(tmp_path / "parts", quiet)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts" / "report.html").exists()


def test_stopped_in_an_evaluation(
    config: Config, tmp_path: Path, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole", quiet)

    def stopped(*args: object, **options: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return answer_all(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mmm_train.loop, "answer_all", stopped)
        with pytest.raises(Interrupted, match="Stopped after step 3 of 9"):
            train(config, tmp_path / "parts", quiet)
    resume(tmp_path / "parts", quiet)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_crash_loses_what_follows_the_checkpoint_and_no_more(
    config: Config, tmp_path: Path, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole", quiet)
    original = Trainer.step

    def step(self: Trainer, batch: object) -> float:
        if self.place.step == 5:
            raise MemoryError
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "parts", quiet)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ep')
    assert Run.open(tmp_path / "parts").metrics()[-1]["step"] == 5
    resume(tmp_path / "parts", quiet)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_writes_its_report_again(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = train(config, tmp_path / "run", quiet)
    shutil.copytree(run.folder, tmp_path / "before")
    (run.folder / "report.html").unlink()
    resume(run.folder, quiet)
    assert_same(tmp_path / "before", run.folder)
    assert (run.folder / "report.html").read_text() == (tmp_path / "before" / "report.html").read_text().replace(
        "before", "run"
    )


def test_signals_are_given_back(
    config: Config, tmp_path: Path, quiet: Terminal, stop_at: Callable[[int], None]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop_at(2)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", quiet)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_stopped_while_the_report_is_made(
    config: Config, tmp_path: Path, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmm_train.training.write_report", interrupted)
        with pytest.raises(Interrupted) as caught:
            train(config, tmp_path / "run", quiet)
    assert str(caught.value) == (
        f"Stopped after the training, which is saved. Write the report with: mmm train --resume {tmp_path / 'run'}"
    )
    resume(tmp_path / "run", quiet)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_has_a_checkpoint_from_its_start(
    config: Config, tmp_path: Path, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", crash)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "parts", quiet)
    resume(tmp_path / "parts", quiet)
    train(config, tmp_path / "whole", quiet)
    parts, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole"))
    assert parts == whole


def test_a_loss_that_is_no_number(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    wild = replace(config, train=replace(config.train, lr=1e30, warmup=0))
    with pytest.raises(LossError) as caught:
        train(wild, tmp_path / "run", quiet)
    assert str(caught.value) == (
        f"step 2: the loss is nan. The last checkpoint in {tmp_path / 'run'} is of step 0. "
        "Lower train.lr or raise train.warmup, and train anew with another --out."
    )
    (tmp_path / "run" / "training.safetensors").unlink()
    with pytest.raises(RunError) as no_checkpoint:
        resume(tmp_path / "run", quiet)
    assert str(no_checkpoint.value) == (
        f"{tmp_path / 'run'}: no checkpoint, training.safetensors is missing. "
        "Train the model first, or name another run."
    )


def test_a_late_loss_names_the_last_checkpoint(
    config: Config, tmp_path: Path, quiet: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def step(self: Trainer, batch: object) -> float:
        if self.place.step == 4:
            self.model.embedding.weight.data[ANSWER] = torch.nan
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(LossError) as caught:
        train(config, tmp_path / "run", quiet)
    assert str(caught.value) == (
        f"step 5: the loss is nan. The last checkpoint in {tmp_path / 'run'} is of step 3. "
        "Lower train.lr or raise train.warmup, and train anew with another --out."
    )
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_nothing_is_written_before_all_is_checked(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    broken = tmp_path / "pictures" / "7.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"pictures/7\.png: a picture was expected, got "):
        train(config, tmp_path / "run", quiet)
    broken.write_bytes(content)
    wrong = {
        "model": replace(config.model, patch_size=5),
        "data": replace(config.data, test=str(tmp_path)),
        "train": replace(config.train, device="cuda:99"),
    }
    for name, part in wrong.items():
        with pytest.raises((ConfigError, DataError, RunError)):
            train(replace(config, **{name: part}), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_other_folders_are_left_alone(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = tmp_path / "run"
    run.mkdir()
    train(replace(config, train=replace(config.train, epochs=1)), run, quiet)  # empty: taken
    with pytest.raises(RunError) as caught:
        train(config, run, quiet)
    assert str(caught.value) == (
        f"{run}: already holds a run. Go on with it by `mmm train --resume {run}`, or choose another --out."
    )
    with pytest.raises(RunError) as caught:
        train(config, tmp_path, quiet)
    assert str(caught.value) == f"{tmp_path}: a new or empty folder was expected. Choose another --out."


def test_resume_wants_the_same_data(
    config: Config, tmp_path: Path, quiet: Terminal, stop_at: Callable[[int], None]
) -> None:
    stop_at(1)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", quiet)
    metadata = tmp_path / "pictures" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("blue", "cyan"))
    with pytest.raises(DataError) as caught:
        resume(tmp_path / "run", quiet)
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: {tmp_path / 'pictures'} is not the data that this run began with. "
        "Restore it, or train a new run."
    )


def test_a_folder_where_a_file_of_the_run_goes(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = Run.open(train(replace(config, train=replace(config.train, epochs=1)), tmp_path / "run", quiet).folder)
    model = run.load_model()
    (run.folder / "config.json").unlink()
    (run.folder / "config.json").mkdir()
    with pytest.raises(
        RunError, match=r"config\.json: a file, or nothing, was expected where one is saved, got a folder"
    ):
        run.save(model, {}, {})


def test_damaged_runs(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = train(replace(config, train=replace(config.train, epochs=1)), tmp_path / "run", quiet).folder

    def message() -> str:
        with pytest.raises(RunError) as caught:
            Run.open(run).load_model()
        return str(caught.value)

    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1])
    assert message().startswith(f"{run / 'model.safetensors'}: a whole safetensors file was expected, got one that is ")
    (run / "model.safetensors").unlink()
    assert message() == (f"{run}: model.safetensors was expected, got none. Name a folder that save_pretrained wrote.")
    about = json.loads((run / "run.json").read_text())
    wider = {**about["settings"], "model": {**about["settings"]["model"], "dim": 32}}
    for change, expected in [
        ({"version": 9}, f"{run}: version 2 was expected in run.json, got 9."),
        ({"settings": wider}, f"{run}: training.safetensors does not fit run.json."),
    ]:
        (run / "run.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(RunError) as caught:
            resume(run, quiet)
        assert str(caught.value) == expected
    for change, expected in [
        ({"settings": {**about["settings"], "train": {"epochs": "8"}}}, "has a wrong value: "),
        ({"longest_answer": None}, "has a wrong value: "),
    ]:
        (run / "run.json").write_text(json.dumps({**about, **change}))
        assert message().startswith(f"{run}: run.json or question_only.json {expected}")
    (run / "run.json").write_text(json.dumps({"version": 2}))
    assert message() == (f"{run}: run.json or question_only.json lacks 'settings'. Restore it, or train anew.")
    (run / "run.json").write_text("[]")
    assert message() == f"{run / 'run.json'}: a JSON object was expected, got list."
    (run / "run.json").write_text(json.dumps(about))
    words = (run / "tokenizer.json").read_text()
    (run / "tokenizer.json").write_text(words[:9])
    assert message().startswith(f"{run / 'tokenizer.json'}: not readable as JSON: ")
    (run / "tokenizer.json").write_text(words)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("junk\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: not JSON lines: "):
        Run.open(run).metrics()
    (run / "run.json").write_text("{")
    assert message().startswith(f"{run / 'run.json'}: not readable as JSON: ")
    (run / "run.json").unlink()
    assert message() == f"{run}: not a run folder, it has no run.json."


def test_hold_out_and_new_test_answers(config: Config, folder: Path, tmp_path: Path, quiet: Terminal) -> None:
    alone = replace(config, data=DataConfig(train=str(folder), holdout=0.25), train=TrainConfig(epochs=1, batch=4))
    assert evaluate_run(train(alone, tmp_path / "a", quiet), quiet).all.asked == 3 * 2
    metadata = tmp_path / "test" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("red", "scarlet"))  # an answer that the model cannot know
    scores = evaluate_run(train(replace(config, train=alone.train), tmp_path / "b", quiet), quiet)
    assert scores.all.asked == 10


def test_a_picture_of_another_size_and_kind(config: Config, tmp_path: Path, quiet: Terminal) -> None:
    run = train(replace(config, train=replace(config.train, epochs=1)), tmp_path / "run", quiet)
    Image.new("RGBA", (50, 33), (255, 0, 0, 128)).save(tmp_path / "a.webp")
    assert len(ask(run, tmp_path / "a.webp", "what?")) == 5
    with pytest.raises(DataError) as caught:
        ask(run, tmp_path / "a.webp", "  ")
    assert str(caught.value) == "question: at least one word was expected, got '  '. This run has learnt no captions."
