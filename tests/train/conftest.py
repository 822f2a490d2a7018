"""Tiny image folders that a tiny model learns in seconds, and ways to stop a training where a test wants it."""

import csv
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from mmm_fusion import local
from mmm_train import Config, DataConfig, ModelConfig, Terminal, TrainConfig
from mmm_train.loop import Trainer

COLOURS = {"red": (220, 30, 30), "green": (30, 190, 30), "blue": (30, 30, 220)}
TINY = ModelConfig(
    dim=16, depth=1, d_state=4, heads=2, image_size=16, patch_size=8, encoder_dim=16, encoder_depth=1, encoder_heads=2
)
MakeFolder = Callable[..., Path]


def write_folder(folder: Path, pictures: int, seed: int = 0) -> Path:
    """Squares of one colour, each with a question about its colour and one about yes or no."""
    chance = random.Random(seed)
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file_name", "question", "answer"])
        for number in range(pictures):
            name = list(COLOURS)[number % 3]
            colour = tuple(max(0, value - chance.randrange(30)) for value in COLOURS[name])
            Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
            lines.writerow([f"{number}.png", "What colour is it?", name])
            lines.writerow([f"{number}.png", "Is it red?", "yes" if name == "red" else "no"])
    return folder


@pytest.fixture(scope="session")
def make_folder() -> MakeFolder:
    return write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", 12)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    """A training of three epochs with three batches each, with all that is random switched on."""
    test = write_folder(tmp_path / "test", 5, seed=1)
    return Config(
        data=DataConfig(train=str(folder), test=str(test), flip=True, shift=1),
        model=ModelConfig(**{**vars(TINY), "dropout": 0.2}),
        train=TrainConfig(epochs=3, batch=4, lr=1e-2, warmup=2, device="cpu"),
    )


@pytest.fixture
def quiet() -> Terminal:
    return Terminal(Console(quiet=True))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses Ctrl-C within the step of a given number."""

    def set_up(number: int) -> None:
        original = Trainer.step

        def step(self: Trainer, batch: object) -> float:
            if self.place.step + 1 == number:
                signal.raise_signal(signal.SIGINT)
            return original(self, batch)

        monkeypatch.setattr(Trainer, "step", step)

    return set_up


@pytest.fixture(autouse=True)
def _only_installed_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers from a file is gone after it."""
    monkeypatch.setattr(local, "_here", {})
