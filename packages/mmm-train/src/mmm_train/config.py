"""All settings of a training, as frozen values that YAML, flags and JSON fill alike."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmm_train.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures and questions are, and how they are read.

    Args:
        train: Folder with a metadata.csv and its pictures, or easy-vqa.
        test: The same for testing. Without it, easy-vqa is tested on its own test part, and of a folder some
            pictures are held out.
        holdout: Part of the pictures to hold out where there is no test folder; a picture's file name decides.
        flip: Mirror every second picture left to right in training. Only where no answer depends on sides.
        shift: Move each picture in training by up to this many pixels in each direction.
        workers: Processes that read pictures beside the training; 0 reads them in between.
    """

    train: str = ""
    test: str | None = None
    holdout: float = 0.1
    flip: bool = False
    shift: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        ok = bool(self.train)
        _expect(ok, "data.train", "a folder with a metadata.csv, or easy-vqa", self.train or "nothing")
        _expect(0 < self.holdout < 1, "data.holdout", "between 0 and 1", self.holdout)
        _expect(self.shift >= 0, "data.shift", "0 or more", self.shift)
        _expect(self.workers >= 0, "data.workers", "0 or more", self.workers)


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of the model.

    Args:
        fusion: Method that joins picture and question; python -m mmm_fusion lists them.
        fusion_options: Further options of that method.
        dim: Width of the words and the backbone.
        depth: Number of Mamba layers.
        d_state: State of a Mamba layer, per channel.
        heads: Attention heads of the fusion method; they divide dim.
        dropout: Rate of dropout, in training only.
        image_size: Side of the square that pictures are resized to, in pixels.
        patch_size: Side of a patch; it divides image_size.
        encoder_dim: Width of the image encoder.
        encoder_depth: Number of its blocks.
        encoder_heads: Its attention heads; they divide encoder_dim.
    """

    fusion: str = "mlp"
    fusion_options: dict[str, Any] = field(default_factory=dict)
    dim: int = 96
    depth: int = 2
    d_state: int = 16
    heads: int = 4
    dropout: float = 0.0
    image_size: int = 64
    patch_size: int = 8
    encoder_dim: int = 96
    encoder_depth: int = 4
    encoder_heads: int = 4


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained.

    Args:
        epochs: Passes over the training pictures.
        batch: Pictures of a step; all questions about them come along.
        lr: Highest learning rate, at the end of the warm-up.
        warmup: Steps until then; afterwards a cosine leads down to a hundredth of it.
        weight_decay: Of AdamW, on matrices alone.
        clip: Highest norm of the gradient.
        evaluate: Epochs between two evaluations; the last epoch always has one.
        seed: Start of every random number.
        device: cpu, cuda and so on; auto takes a GPU where there is one.
    """

    epochs: int = 10
    batch: int = 16
    lr: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    evaluate: int = 1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "evaluate"):
            value = getattr(self, name)
            _expect(value >= 1, f"train.{name}", "1 or more", value)
        for name in ("warmup", "weight_decay"):
            value = getattr(self, name)
            _expect(value >= 0, f"train.{name}", "0 or more", value)
        for name in ("lr", "clip"):
            value = getattr(self, name)
            _expect(0 < value < float("inf"), f"train.{name}", "above 0", value)


@dataclass(frozen=True)
class Config:
    """All settings of a training.

    Args:
        data: Where the pictures and questions are.
        model: The sizes of the model.
        train: How it is trained.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """Build a config from nested settings; what they leave out has its default.

        Args:
            settings: Such as `{"data": {"train": "pictures"}, "train": {"lr": 1e-3}}`.
        Returns:
            The config.
        Raises:
            ConfigError: A key is unknown, or a value is out of its range.
        """
        check_keys(settings, "settings")
        return cls(**{name: part(**settings.get(name, {})) for name, part in PARTS.items()})

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested plain values.

        Returns:
            What `from_dict` reads.
        """
        return dataclasses.asdict(self)


PARTS: dict[str, type[Any]] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
KEYS = {name: [each.name for each in fields(part)] for name, part in PARTS.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, nested; only those that it states, and null states nothing."""
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: a YAML file was expected; {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: not YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}.") from error
    settings = {} if settings is None else settings
    check_keys(settings, str(path))
    given = {name: part for name, part in settings.items() if part}
    return {name: {key: value for key, value in part.items() if value is not None} for name, part in given.items()}


def check_keys(settings: object, where: str) -> None:
    """Raise `ConfigError` at the first key that no setting has."""
    for name, part in _mapping(settings, where, "data, model and train").items():
        if name not in PARTS:
            raise ConfigError(f"{where}: unknown key '{name}'.{_hint(name, '', list(PARTS))}")
        for key in _mapping(part or {}, where, f"settings under '{name}'"):
            if key not in KEYS[name]:
                raise ConfigError(f"{where}: unknown key '{name}.{key}'.{_hint(key, f'{name}.', KEYS[name])}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings in which those of `over` replace those of `base`, key by key."""
    return {name: {**base.get(name, {}), **over.get(name, {})} for name in PARTS}


def _mapping(value: object, where: str, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected {what} as key: value, got {value!r}.")
    return value


def _hint(key: object, prefix: str, known: list[str]) -> str:
    elsewhere = [f"{name}.{key}" for name, keys in KEYS.items() if key in keys]
    close = [f"{prefix}{name}" for name in difflib.get_close_matches(str(key), known, n=1)]
    likely = elsewhere + close
    return f" Did you mean '{likely[0]}'?" if likely else f" Known here: {', '.join(known)}."


def _expect(ok: bool, setting: str, what: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"{setting} must be {what}, got {got}.")
