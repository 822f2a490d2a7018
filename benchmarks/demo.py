"""How much faster does the demo train with the native scan than with the chunked one?

Takes the settings of `mmm demo`, and each built-in fusion method in turn. Checks first that both backends give the same
loss and gradients on a batch, then lets the two train in turn, on the same batches. A step is all that the training
does for one batch: reading, forward, backward, clipping and the optimiser. Files are read before.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timing import measure, print_at_least, print_figure, print_timings, ratio, setting

from mmm_core.backends import VARIABLE
from mmm_core.testing import rms_error_ratio
from mmm_fusion.builtin import mmm_fusion_methods
from mmm_train import demo_config
from mmm_train.data import Examples, read_sets
from mmm_train.loop import Trainer
from mmm_train.model import loss_of
from mmm_train.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mmm_train.data import Batch, QuestionSet

BACKENDS = ("native", "chunked")
ROUNDS = 25
TOLERANCE = 1e-4  # float32 through a whole network and back


def main() -> None:
    default = demo_config()
    learn, _ = read_sets(default.data)
    print(f"A training step of the demo ({setting()}), by fusion method")
    for method in mmm_fusion_methods():
        trainers = {backend: trainer(method.name, learn) for backend in BACKENDS}
        check(trainers)
        runs = {backend: partial(step, backend, each, forever(each)) for backend, each in trainers.items()}
        times = measure(runs, ROUNDS)
        print_timings(method.name, times)
        value = ratio(times, "chunked", "native")
        if method.name == default.model.fusion:
            print_at_least("chunked / native", value, 3)
        else:
            print_figure("chunked / native", value)


def trainer(method: str, learn: QuestionSet) -> Trainer:
    config = demo_config(method)
    run = Run.plan(Path(tempfile.gettempdir()) / "never-written", config, learn)
    examples = Examples(learn, run.tokenizer, config.model.image_size)
    for _ in examples:  # now they are in memory
        pass
    return Trainer(run, examples, torch.device("cpu"))


def forever(trainer: Trainer) -> Iterator[Batch]:
    while True:
        yield from trainer.rest_of_epoch()
        trainer.end_epoch()


def step(backend: str, trainer: Trainer, batches: Iterator[Batch]) -> None:
    os.environ[VARIABLE] = backend
    trainer.step(next(batches))


def check(trainers: dict[str, Trainer]) -> None:
    """Raise unless all backends give the same loss and gradients on the first batch."""
    expected = loss_and_gradients("chunked", trainers["chunked"])
    for name, x in loss_and_gradients("native", trainers["native"]).items():
        error = rms_error_ratio(x, expected[name])
        assert error <= TOLERANCE, f"{name}: RMS error ratio {error:.2e}, at most {TOLERANCE:.0e}"


def loss_and_gradients(backend: str, trainer: Trainer) -> dict[str, Tensor]:
    os.environ[VARIABLE] = backend
    torch.manual_seed(0)  # dropout
    model = trainer.model.train()
    loss = loss_of(model, next(trainer.rest_of_epoch()))
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True))}


if __name__ == "__main__":
    main()
