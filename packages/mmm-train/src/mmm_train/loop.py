"""The training loop: steps, evaluations and checkpoints, stopped and resumed without a trace.

A step depends on the seed, its number and the tensors of the checkpoint alone; so a training that was resumed gives
bit by bit what it would have given without the break. (On a GPU torch does not repeat every sum to the last bit.)
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm_block import CheckpointError
from mmm_block.weights import own_tensors, put_weights
from mmm_train.data import Augment, Batch, Examples, batches, shuffled
from mmm_train.errors import Interrupted, LossError, RunError
from mmm_train.evaluate import answer_all, score
from mmm_train.model import loss_of
from mmm_train.optimiser import learning_rate, make_optimiser
from mmm_train.run import Run
from mmm_train.seeds import derive
from mmm_train.signals import StopWish, stop_wish

if TYPE_CHECKING:
    from mmm_train.terminal import Progress


@dataclass
class Place:
    """How far a training is.

    Args:
        epoch: Epochs done, evaluation included.
        batch: Batches done of the next one.
        step: Steps done in all.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


class Trainer:
    """A model in training.

    Args:
        run: Its settings and folder.
        examples: The training set.
        device: Where to compute.
    """

    def __init__(self, run: Run, examples: Examples, device: torch.device) -> None:
        self.run, self.examples, self.device = run, examples, device
        self.config = run.config.train
        torch.manual_seed(derive(self.config.seed, "model"))
        self.model = run.new_model().to(device)
        self.optimiser = make_optimiser(self.model, self.config)
        self.place = Place()
        self.batches_per_epoch = math.ceil(len(examples) / self.config.batch)
        self.steps = self.config.epochs * self.batches_per_epoch

    @property
    def done(self) -> bool:
        """Whether all epochs are."""
        return self.place.epoch >= self.config.epochs

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches that this epoch still has."""
        seed, epoch, data = self.config.seed, self.place.epoch, self.run.config.data
        self.examples.change = Augment(data.flip, data.shift, seed, epoch)
        order = shuffled(len(self.examples), seed, epoch)
        return batches(self.examples, self.config.batch, order=order, start=self.place.batch, workers=data.workers)

    def step(self, batch: Batch) -> float:
        """Learn from one batch; returns its loss."""
        step = self.place.step
        torch.manual_seed(derive(self.config.seed, "step", step))  # dropout
        rate = learning_rate(step, self.steps, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimiser.zero_grad()
        loss = loss_of(self.model, batch.to(self.device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for name, value in (("loss", loss.item()), ("norm of the gradient", norm.item())):
            if not math.isfinite(value):
                raise LossError(f"step {step + 1}: the {name} is {value}.")
        self.optimiser.step()
        self.place.batch += 1
        self.place.step += 1
        return loss.item()

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.place = Place(self.place.epoch + 1, 0, self.place.step)

    def save(self) -> None:
        """Write a checkpoint from which `load` goes on."""
        tensors = {f"model.{name}": tensor for name, tensor in own_tensors(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{key}.{name}"] = value
        self.run.save(self.model, tensors, dataclasses.asdict(self.place))

    def load(self) -> None:
        """Go on from the last checkpoint."""
        tensors, place = self.run.load_training()
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        parameters = dict(self.model.named_parameters())
        try:
            put_weights(self.model, model, str(self.run.folder), self.device, None)
            for name in tensors.keys() - {f"model.{name}" for name in model}:
                _, key, parameter = name.split(".", 2)
                self.optimiser.state[parameters[parameter]][key] = tensors[name].to(self.device)
        except (CheckpointError, KeyError) as error:
            raise RunError(f"{self.run.folder}: training.safetensors does not fit run.json.") from error
        self.place = Place(**place)
        self.run.forget_after(self.place.step)


def fit(trainer: Trainer, test: Examples, progress: Progress) -> None:
    """Train to the last epoch; evaluate and save along the way, and save when asked to stop.

    Args:
        trainer: The training, new or loaded.
        test: The test set.
        progress: Shows what happens.
    Raises:
        Interrupted: Ctrl-C; all is saved.
        LossError: The loss or its gradient is not finite.
    """
    with stop_wish() as wish:
        try:
            while not trainer.done:
                _epoch(trainer, test, progress, wish)
        except Interrupted as stop:
            trainer.save()
            folder = shlex.quote(str(trainer.run.folder))
            raise Interrupted(
                f"Stopped after step {trainer.place.step:,} of {trainer.steps:,}, and saved. "
                f"Go on with: mmm train --resume {folder}"
            ) from stop
        except LossError as error:
            raise LossError(f"{error} {_advice(trainer.run)}") from error


def _epoch(trainer: Trainer, test: Examples, progress: Progress, wish: StopWish) -> None:
    run, place = trainer.run, trainer.place
    before = time.perf_counter()
    for batch in trainer.rest_of_epoch():
        loss = trainer.step(batch)
        now = time.perf_counter()
        speed, before = len(batch.images) / (now - before), now
        rate = trainer.optimiser.param_groups[0]["lr"]
        run.record(step=place.step, epoch=place.epoch + 1, loss=loss, lr=rate, images_per_second=round(speed, 1))
        progress.step(place.step, place.epoch + 1, loss, speed)
        wish.heed()
    epoch = place.epoch + 1
    if epoch % trainer.config.evaluate == 0 or epoch == trainer.config.epochs:
        answered = answer_all(
            trainer.model,
            test,
            run.tokenizer,
            run.longest,
            workers=run.config.data.workers,
            after_batch=lambda _: wish.heed(),
        )
        scores = score((each.question.answer, each.given) for each in answered)
        run.record(step=place.step, epoch=epoch, test=scores.parts())
        progress.evaluated(epoch, scores)
    trainer.end_epoch()
    trainer.save()


def _advice(run: Run) -> str:
    _, place = run.load_training()
    return (
        f"The last checkpoint in {run.folder} is of step {place['step']}. "
        "Lower train.lr or raise train.warmup, and train anew with another --out."
    )
