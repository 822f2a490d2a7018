"""Settings from YAML, flags and JSON, and one clear error for each that is wrong."""

import json
from pathlib import Path

import pytest

from mmm_train import Config, ConfigError, DataConfig, TrainConfig
from mmm_train.config import read_yaml

DATA = DataConfig(train="pictures")


def test_defaults_and_round_trip() -> None:
    config = Config.from_dict({"data": {"train": "pictures"}, "train": {"lr": 0.1}, "model": {"dim": 32}})
    assert config == Config(data=DATA, model=type(config.model)(dim=32), train=TrainConfig(lr=0.1))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(DATA) == hash(DataConfig(train="pictures"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"train": "x"}, "modl": {}}, "settings: unknown key 'modl'. Did you mean 'model'?"),
        ({"model": {"dept": 1}}, "settings: unknown key 'model.dept'. Did you mean 'model.depth'?"),
        ({"learning_rate": 1}, "settings: unknown key 'learning_rate'. Known here: data, model, train."),
        ({"epochs": 1}, "settings: unknown key 'epochs'. Did you mean 'train.epochs'?"),
        ({"model": {"epochs": 1}}, "settings: unknown key 'model.epochs'. Did you mean 'train.epochs'?"),
        (
            {"data": {"pictures": 1}},
            "settings: unknown key 'data.pictures'. Known here: train, test, holdout, flip, shift, workers.",
        ),
        ({"model": 3}, "settings: expected settings under 'model' as key: value, got 3."),
        ({}, "data.train must be a folder with a metadata.csv, or easy-vqa, got nothing."),
    ],
)
def test_unknown_keys(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (DataConfig, {"holdout": 1.0}, "data.holdout must be between 0 and 1, got 1.0."),
        (DataConfig, {"shift": -1}, "data.shift must be 0 or more, got -1."),
        (DataConfig, {"workers": -1}, "data.workers must be 0 or more, got -1."),
        (TrainConfig, {"epochs": 0}, "train.epochs must be 1 or more, got 0."),
        (TrainConfig, {"batch": 0}, "train.batch must be 1 or more, got 0."),
        (TrainConfig, {"evaluate": 0}, "train.evaluate must be 1 or more, got 0."),
        (TrainConfig, {"warmup": -1}, "train.warmup must be 0 or more, got -1."),
        (TrainConfig, {"weight_decay": float("nan")}, "train.weight_decay must be 0 or more, got nan."),
        (TrainConfig, {"lr": 0.0}, "train.lr must be above 0, got 0.0."),
        (TrainConfig, {"clip": float("inf")}, "train.clip must be above 0, got inf."),
    ],
)
def test_ranges(part: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part(**({"train": "x"} if part is DataConfig else {}), **values)
    assert str(caught.value) == message


def test_yaml_gives_only_what_it_states(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: {train: pictures}\nmodel:\n# nothing\n")
    assert read_yaml(path) == {"data": {"train": "pictures"}}
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dpth: 3}", "{path}: unknown key 'model.dpth'. Did you mean 'model.depth'?"),
        ("- model", "{path}: expected data, model and train as key: value, got ['model']."),
        ("a: [\n", "{path}, line 2: not YAML: expected the node content, but found '<stream end>'."),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == message.format(path=path)


def test_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert str(caught.value) == f"{tmp_path / 'a.yaml'}: a YAML file was expected; No such file or directory."
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"b\.yaml: not YAML: "):
        read_yaml(tmp_path / "b.yaml")
