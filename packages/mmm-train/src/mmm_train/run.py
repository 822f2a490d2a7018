"""A run folder: everything that a training leaves behind, enough to go on, to answer questions, and to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mmm_fusion
from mmm_block import CheckpointError
from mmm_block.files import read_steady, write_json, write_whole
from mmm_block.origins import origin, source
from mmm_block.weights import put_weights, read_weights
from mmm_train.checkpoint import read_json, read_tensors, write_tensors
from mmm_train.config import Config
from mmm_train.data import QuestionSet, Tokenizer
from mmm_train.errors import RunError
from mmm_train.evaluate import QuestionOnly
from mmm_train.model import new_model

if TYPE_CHECKING:
    from mmm_block import MultiModalMamba

VERSION = 2
"""Of the layout of a run folder."""
CARD = """\
It was trained by mmm-train to answer questions about pictures, or to describe them: `<image>` question `<answer>`
answer `<end>`. The numbers of words and marks are in tokenizer.json. Pictures are resized to the size below, with
values from -1 to 1."""
PACKAGES = ("mmm-train", "mmm-block", "mmm-fusion", "mmm-vit", "mmm-core", "torch")


@dataclass(frozen=True)
class Run:
    """An open run folder.

    Args:
        folder: Where it is.
        config: All settings.
        tokenizer: Numbers the words.
        longest: Tokens of the longest answer of the training set, its end included.
        question_only: What a predictor answers that sees no picture.
        trained_on: Fingerprint of the training set.
        source: Where its fusion method came from, see `mmm_block.origins`.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    longest: int
    question_only: QuestionOnly
    trained_on: str
    source: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plan(cls, folder: Path, config: Config, data: QuestionSet) -> Run:
        """What a run on a training set will be; nothing is written yet.

        Args:
            folder: New or empty.
            config: All settings.
            data: The training set.
        Returns:
            The run.
        Raises:
            RunError: Something is in the folder.
        """
        if (folder / "run.json").exists():
            raise RunError(
                f"{folder}: already holds a run. Go on with it by `mmm train --resume {folder}`, "
                "or choose another --out."
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: a new or empty folder was expected. Choose another --out.")
        tokenizer = Tokenizer.learn(text for question in data.questions for text in (question.text, question.answer))
        longest = max(len(tokenizer.encode(question.answer)) for question in data.questions) + 1
        blind, origin = QuestionOnly.learn(data), source(config.model.fusion)
        return cls(folder, config, tokenizer, longest, blind, data.fingerprint(), origin)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run folder.

        Args:
            folder: Where it is.
        Returns:
            The run.
        Raises:
            RunError: It is none, or not readable.
        """
        folder = Path(folder)
        about = read_json(folder / "run.json")
        if about.get("version") != VERSION:
            raise RunError(f"{folder}: version {VERSION} was expected in run.json, got {about.get('version')}.")
        known = read_json(folder / "question_only.json")
        words = read_json(folder / "tokenizer.json")
        try:
            return cls(
                folder,
                Config.from_dict(about["settings"]),
                Tokenizer.from_json(json.dumps(words)),
                int(about["longest_answer"]),
                QuestionOnly(known["best"], known["fallback"]),
                about["trained_on"],
                about.get("fusion", {}),
            )
        except (KeyError, TypeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else f"has a wrong value: {error}"
            raise RunError(f"{folder}: run.json or question_only.json {reason}. Restore it, or train anew.") from error

    @property
    def captions(self) -> bool:
        """Whether it has learnt captions."""
        return "" in self.question_only.best

    @property
    def questions(self) -> bool:
        """Whether it has learnt to answer questions."""
        return any(self.question_only.best)

    def other_method(self) -> str:
        """Whether its fusion method is another now than at the beginning.

        Returns:
            What to say then, in one line; nothing if it is the same, or is not registered.
        """
        name = self.config.model.fusion
        now = source(name)
        if not self.source or not now or now == self.source:
            return ""
        return f"{self.folder}: began with fusion method '{name}' of {origin(self.source)}, it is now of {origin(now)}."

    def create(self) -> None:
        """Make the folder and write what the training does not change; run.json, which makes it a run, last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "tokenizer.json", self.tokenizer.to_json())
        known = {"fallback": self.question_only.fallback, "best": self.question_only.best}
        write_json(self.folder / "question_only.json", known)
        about = {
            "version": VERSION,
            "settings": self.config.to_dict(),
            "longest_answer": self.longest,
            "trained_on": self.trained_on,
            "fusion": self.source,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }
        write_json(self.folder / "run.json", about)

    def new_model(self) -> MultiModalMamba:
        """An untrained model.

        Returns:
            On the CPU.
        Raises:
            ConfigError: A size is out of its range.
            mmm_fusion.UnknownMethodError: Its fusion method is not registered; says where it came from.
        """
        try:
            return new_model(self.config.model, len(self.tokenizer))
        except mmm_fusion.UnknownMethodError as error:
            raise mmm_fusion.UnknownMethodError(f"{error}{self._where_it_was()}") from error

    def save(self, model: MultiModalMamba, training: Mapping[str, torch.Tensor], place: Mapping[str, int]) -> None:
        """Write a checkpoint: first all that going on needs, in one file, then the model as it is passed on.

        Args:
            model: The model.
            training: What going on needs, the model included.
            place: How far the training is.
        Raises:
            RunError: What is no file of a run stands where one is written.
        """
        write_tensors(self.folder / "training.safetensors", training, place)
        about = {"model_id": self.folder.resolve().name, "description": CARD}
        try:
            model.save_pretrained(self.folder, model_card_kwargs=about)
        except CheckpointError as error:
            raise RunError(str(error)) from error

    def load_training(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """Read what `save` wrote to go on.

        Returns:
            The tensors, and how far the training was.
        Raises:
            RunError: There is no checkpoint, or it is damaged.
        """
        return read_tensors(self.folder / "training.safetensors")

    def load_model(self, device: str | torch.device = "cpu") -> MultiModalMamba:
        """The model of the last checkpoint, ready to answer.

        Args:
            device: Where to put it.
        Returns:
            The model.
        Raises:
            RunError: There is no checkpoint, it is damaged, or it does not fit run.json.
        """
        model = self.new_model()
        try:
            weights = read_steady(self.folder, ["model*"], read_weights)
            put_weights(model, weights, str(self.folder), torch.device(device), None)
        except CheckpointError as error:
            raise RunError(str(error)) from error
        return model.eval()

    def _where_it_was(self) -> str:
        """Where to find the fusion method; nothing of it is run because run.json says so."""
        match self.source:
            case {"place": place}:
                return f" {self.folder} was trained with that of {place}: name this file by --plugin FILE."
            case {"distribution": name, "version": version}:
                return f" {self.folder} was trained with that of {name} {version}: install that."
        return ""

    def record(self, **values: object) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl.

        Returns:
            One dict a line, in order; a last line that a crash cut short is left out.
        """
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        except ValueError as error:
            raise RunError(f"{path}: not JSON lines: {error}. Mend or remove it.") from error

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that the last checkpoint does not have."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_whole(self.folder / "metrics.jsonl", "".join(kept))


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, … that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def pick_device(name: str) -> torch.device:
    """The device that `train.device` means.

    Args:
        name: auto, cpu, cuda, cuda:1 and so on.
    Returns:
        The device.
    Raises:
        RunError: torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        one = torch.ones((), device=name)
        one.item()  # a device that cannot give it back cannot train
        return one.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RunError(f"train.device = {name}: {reason}. Use auto or cpu.") from error
