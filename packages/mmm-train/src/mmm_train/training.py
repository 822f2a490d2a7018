"""A training from its settings to its report, and what can be done with its run folder afterwards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmm_train.answers import Answer, write_answers
from mmm_train.config import Config
from mmm_train.data import (
    Example,
    Examples,
    QuestionSet,
    Text,
    check_pictures,
    collate,
    open_picture,
    read_sets,
    read_test_set,
    to_bytes,
    to_tensor,
)
from mmm_train.errors import DataError, Interrupted, RunError
from mmm_train.evaluate import Scores, answer_all, score
from mmm_train.loop import Trainer, fit
from mmm_train.report import write_report
from mmm_train.run import Run, pick_device
from mmm_train.terminal import Terminal

if TYPE_CHECKING:
    from mmm_block import MultiModalMamba
    from mmm_train.evaluate import Answered


def train(config: Config, folder: str | Path, terminal: Terminal | None = None) -> Run:
    """Train a model and write its run folder. Nothing is written before settings, data and pictures are checked.

    It sets torch's global seed.

    Args:
        config: All settings.
        folder: New or empty.
        terminal: Where to show progress and result; by default standard output.
    Returns:
        The run.
    Raises:
        TrainError: A setting, the data or the folder cannot be used, or the loss is not finite.
        Interrupted: Ctrl-C; all is saved.
    """
    terminal = terminal or Terminal()
    learn, test = read_sets(config.data)
    run = Run.plan(Path(folder), config, learn)
    trainer = Trainer(run, _examples(run, learn), pick_device(config.train.device))
    for data in (learn, test):
        with terminal.bar(len(data.pictures), f"checking the pictures of {data.name}") as done:
            check_pictures(data, done)
    run.create()
    trainer.save()  # from here on there is always a checkpoint to go on from
    return _train(trainer, learn, test, terminal)


def resume(folder: str | Path, terminal: Terminal | None = None) -> Run:
    """Go on with a training that was stopped, as if it had not been; of a finished one, write the report again.

    Args:
        folder: The run folder.
        terminal: Where to show progress and result; by default standard output.
    Returns:
        The run.
    Raises:
        TrainError: The folder is no run or has no checkpoint, its data or fusion method has changed, or the loss is not
            finite.
        Interrupted: Ctrl-C; all is saved.
    """
    run = Run.open(folder)
    learn, test = read_sets(run.config.data)
    if learn.fingerprint() != run.trained_on:
        raise DataError(
            f"{run.folder}: {learn.name} is not the data that this run began with. Restore it, or train a new run."
        )
    if other := run.other_method():
        raise RunError(f"{other} Restore that, or train a new run.")
    trainer = Trainer(run, _examples(run, learn), pick_device(run.config.train.device))
    trainer.load()
    return _train(trainer, learn, test, terminal or Terminal())


def evaluate_run(run: Run, terminal: Terminal | None = None) -> Scores:
    """Let the model of a run answer its test set, and print the table.

    Args:
        run: With a checkpoint. Its `config.data` names the test set.
        terminal: Where to print; by default standard output.
    Returns:
        How often it was right.
    Raises:
        TrainError: There is no checkpoint, or the test set cannot be read.
    """
    terminal = terminal or Terminal()
    model = run.load_model(pick_device(run.config.train.device))
    test = read_test_set(run.config.data)
    if other := run.other_method():
        terminal.say(other)
    rows = _rows(run, _answer(run, model, test, terminal))
    terminal.scores(rows)
    return rows[run.config.model.fusion]


def ask(run: Run, picture: str | Path, question: str = "", *, top: int = 5) -> list[Answer]:
    """Ask the model of a run about a picture.

    Args:
        run: With a checkpoint.
        picture: The file.
        question: Any text with a word in it; or nothing: what the picture shows, if the run has learnt captions.
        top: How many answers to follow at once.
    Returns:
        Up to `top` answers with their probabilities, the most probable first.
    Raises:
        TrainError: There is no checkpoint, the picture cannot be read, or the question has no word.
    """
    if not run.tokenizer.encode(question) and not run.captions:
        raise DataError(f"question: at least one word was expected, got {question!r}. This run has learnt no captions.")
    image = to_tensor(to_bytes(open_picture(picture), run.config.model.image_size))
    batch = collate([Example(image, [Text.of(run.tokenizer, question)])])
    model = run.load_model(pick_device(run.config.train.device))
    (found,) = write_answers(model, batch, run.tokenizer, longest=run.longest, width=top)
    return found


def _train(trainer: Trainer, learn: QuestionSet, test: QuestionSet, terminal: Terminal) -> Run:
    run = trainer.run
    _introduce(trainer, learn, test, terminal)
    with terminal.progress(trainer) as progress:
        fit(trainer, _examples(run, test), progress)
    try:
        answered = _answer(run, trainer.model, test, terminal)
        rows = _rows(run, answered)
        write_report(run, rows, answered)
    except KeyboardInterrupt as stop:
        again = f"mmm train --resume {shlex.quote(str(run.folder))}"
        raise Interrupted(f"Stopped after the training, which is saved. Write the report with: {again}") from stop
    terminal.scores(rows)
    terminal.say(f"report: {run.folder / 'report.html'}")
    question = ' "QUESTION"' if run.questions else ""
    terminal.say(f"ask it: mmm ask {shlex.quote(str(run.folder))} PICTURE{question}")
    return run


def _introduce(trainer: Trainer, learn: QuestionSet, test: QuestionSet, terminal: Terminal) -> None:
    run, model = trainer.run, trainer.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    terminal.say(f"learn   {_size(learn)}")
    terminal.say(f"test    {_size(test)}")
    terminal.say(f"model   fusion {run.config.model.fusion}, {parameters:,} parameters, on {_place(trainer.device)}")
    terminal.say(f"run     {run.folder}")


def _size(data: QuestionSet) -> str:
    captions = sum(not question.text for question in data.questions)
    questions = sum(1 for _ in data.questions) - captions
    counts = {"pictures": len(data.pictures), "questions": questions, "captions": captions}
    return f"{data.name}: {', '.join(f'{count:,} {what}' for what, count in counts.items() if count)}"


def _place(device: torch.device) -> str:
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)


def _examples(run: Run, data: QuestionSet) -> Examples:
    return Examples(data, run.tokenizer, run.config.model.image_size)


def _answer(run: Run, model: MultiModalMamba, test: QuestionSet, terminal: Terminal) -> list[Answered]:
    with terminal.bar(len(test.pictures), "answering the test questions") as done:
        return answer_all(
            model,
            _examples(run, test),
            run.tokenizer,
            run.longest,
            workers=run.config.data.workers,
            after_batch=done,
        )


def _rows(run: Run, answered: list[Answered]) -> dict[str, Scores]:
    """The scores of the run's model, below those of a predictor without eyes."""
    asked = [each.question for each in answered]
    return {
        "question only": score((question.answer, run.question_only(question.text)) for question in asked),
        run.config.model.fusion: score((each.question.answer, each.given) for each in answered),
    }
