"""Fusion methods by name and by file in the `mmm` command, and runs whose method is not there any more."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import mmm_fusion
from mmm_fusion import loading
from mmm_train import Config, ConfigError, Run, Terminal, demo_config, train
from mmm_train.cli import main
from mmm_train.methods import one_method, several_methods

PLUGIN = '''
import mmm_fusion

class Own(mmm_fusion.ImageFirst):
    """Image tokens as they are."""

    name = "own"

    def __init__(self, dim, image_dim, *, heads, dropout):
        super().__init__()
        self.dim, self.image_dim = dim, image_dim

    def read(self, image, *, image_mask=None, image_grid=None):
        image = mmm_fusion.check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        return mmm_fusion.ImageMemory(image, image_mask)
'''
ORIGIN = {"place": "own.py", "sha256": hashlib.sha256(PLUGIN.encode()).hexdigest()}
TWO = PLUGIN + "\nclass Other(Own):\n    name = 'other'\n"
SIZES = ("dim", "depth", "d_state", "heads", "image_size", "encoder_dim", "encoder_depth", "encoder_heads")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(PLUGIN)
    Path("two.py").write_text(TWO)


def names() -> set[str]:
    return {method.name for method in mmm_fusion.available()}


def test_one_method() -> None:
    assert one_method("concat") == "concat"
    assert one_method("py.concat") == "py.concat"  # a name, if not one that exists
    assert "own" not in names()
    assert one_method("./own.py") == "own"
    assert "own" in names()
    assert one_method("own.py:own") == "own"


def test_one_of_several() -> None:
    assert one_method("two.py:other") == "other"
    with pytest.raises(ConfigError) as caught:
        one_method("two.py")
    assert str(caught.value) == "two.py: has the methods own, other. Choose one: two.py:own"
    with pytest.raises(ConfigError) as caught:
        one_method("two.py:another")
    assert str(caught.value) == "two.py: has no fusion method 'another'. It has: own, other."
    with pytest.raises(mmm_fusion.PluginError, match="three"):
        one_method("three.py")


def test_a_list() -> None:
    assert several_methods("all") is None
    assert several_methods("add, mlp,add") == ["add", "mlp"]
    assert several_methods("add,./two.py") == ["add", "own", "other"]
    assert several_methods("two.py:other,add") == ["other", "add"]


def test_all_and_a_file() -> None:
    assert several_methods("all,./two.py") is None
    assert names() >= {"add", "own", "other"}


@pytest.mark.usefixtures("folder")
def test_train_with_a_file_and_ask_elsewhere(
    config: Config, quiet: Terminal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [f"--model.{name}={getattr(config.model, name)}" for name in SIZES]
    own = ["--train.epochs=1", "--train.batch=4", "--train.device=cpu", *sizes]
    assert main(["train", "--data.train", "pictures", "--model.fusion", "./own.py", "--out", "run", *own]) == 0
    about = json.loads((Path("run") / "run.json").read_text())
    assert (about["settings"]["model"]["fusion"], about["fusion"]) == ("own", ORIGIN)
    Path("settings.yaml").write_text("data: {train: pictures}\nmodel: {fusion: own}")
    flags = ["--config", "settings.yaml", "--plugin", "own.py", "--out", "second", *own]
    assert main(["train", *flags]) == 0
    assert main(["train", "--resume", "second", "--plugin", "own.py"]) == 0
    capsys.readouterr()

    monkeypatch.setattr(mmm_fusion.local, "_here", {})  # as in another process
    commands = {"eval": ["eval", "run"], "ask": ["ask", "run", "pictures/0.png", "is it red?"]}
    commands["resume"] = ["train", "--resume", "run"]
    for words in commands.values():
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("mmm: fusion method 'own' is not registered. ")
        assert error.endswith(" run was trained with that of own.py: name this file by --plugin FILE.\n")
    for words in commands.values():
        monkeypatch.setattr(mmm_fusion.local, "_here", {})
        assert main([*words, "--plugin", "./own.py"]) == 0

    Path("own.py").write_text(PLUGIN + "# changed")
    now = hashlib.sha256(Path("own.py").read_bytes()).hexdigest()
    other = (
        f"run: began with fusion method 'own' of own.py (sha256 {ORIGIN['sha256'][:12]}), "
        f"it is now of own.py (sha256 {now[:12]})."
    )
    capsys.readouterr()
    for name in ("eval", "ask"):
        assert main([*commands[name], "--plugin", "./own.py"]) == 0
        assert capsys.readouterr().out.startswith(f"{other}\n")
    assert main([*commands["resume"], "--plugin", "./own.py"]) == 2
    assert capsys.readouterr().err == f"mmm: {other} Restore that, or train a new run.\n"


def test_a_missing_distribution_is_named(config: Config, quiet: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(replace(config, train=replace(config.train, epochs=1)), "run", quiet)
    about = json.loads((run.folder / "run.json").read_text())
    assert about["fusion"]["distribution"] == "mmm-fusion"
    about["fusion"] = {"distribution": "acme-fusion", "version": "0.2"}
    about["settings"]["model"]["fusion"] = "acme"
    (run.folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(mmm_fusion.UnknownMethodError) as caught:
        Run.open("run").load_model()
    assert str(caught.value).endswith(" run was trained with that of acme-fusion 0.2: install that.")
    about["fusion"] = {"place": "\x1b]0;own\x07.py"}
    (run.folder / "run.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["eval", "run"]) == 2
    assert r"that of \x1b]0;own\x07.py: name this file" in capsys.readouterr().err
    del about["fusion"]  # as runs were before it was recorded
    (run.folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(mmm_fusion.UnknownMethodError) as caught:
        Run.open("run").load_model()
    assert str(caught.value).endswith("See `python -m mmm_fusion`.")


def test_no_file_is_run_because_settings_name_it(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text("open('it ran', 'w')\n" + PLUGIN)
    Path("settings.yaml").write_text("data: {train: pictures}\nmodel: {fusion: ./own.py}")
    assert main(["train", "--config", "settings.yaml", "--out", "run"]) == 2
    assert capsys.readouterr().err.startswith("mmm: fusion method './own.py' is not registered.")
    assert not Path("it ran").exists()
    assert not Path("run").exists()


def test_demo_takes_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr("mmm_train.training.train", lambda config, folder: seen.append(config))
    assert main(["demo", "--fusion", "two.py:other"]) == 0
    assert seen == [demo_config("other")]


@pytest.fixture
def loaded_anew() -> Iterator[None]:
    loading.installed.cache_clear()
    yield
    loading.installed.cache_clear()


@pytest.fixture
def acme(loaded_anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one plug-in that is installed; it does not load."""
    Path("acme_fusion.py").write_text("raise ImportError('no luck')")
    info = Path("acme_fusion-0.2.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Name: acme-fusion\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text("[mmm_fusion]\nacme = acme_fusion\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "acme")


@pytest.mark.usefixtures("loaded_anew")
def test_plugins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMM_FUSION_PLUGINS", "")
    assert main(["plugins"]) == 0
    assert "  concat " in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["contract"], found["failures"]) == (mmm_fusion.CONTRACT, [])
    mlp = next(method for method in found["methods"] if method["name"] == "mlp")
    assert (mlp["distribution"], mlp["class"]) == ("mmm-fusion", "mmm_fusion.methods.mlp.MLP")
    assert mlp.keys() >= {"version", "entry_point", "summary"}


@pytest.mark.usefixtures("acme")
def test_plugins_that_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 1
    assert "acme-fusion 0.2" in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 1
    failure = json.loads(capsys.readouterr().out)["failures"][0]
    assert [failure[key] for key in ("distribution", "version", "entry_point")] == ["acme-fusion", "0.2", "acme"]
    assert (failure["error"], failure["message"]) == ("ImportError", "no luck")
