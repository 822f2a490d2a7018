"""`compare`: trains what is not trained yet, each run in a process of its own, and writes the results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mmm_fusion
from mmm_train.checkpoint import read_json
from mmm_train.comparison.display import Board, introduce, show
from mmm_train.comparison.member import RESULT
from mmm_train.comparison.plan import Member, Plan
from mmm_train.comparison.processes import started
from mmm_train.comparison.report import write_report
from mmm_train.comparison.summary import Comparison, as_json, summarise
from mmm_train.config import Config
from mmm_train.data import QuestionSet, check_pictures, read_sets
from mmm_train.demo import compare_config
from mmm_train.errors import ConfigError, Interrupted
from mmm_train.methods import load_plugin, source
from mmm_train.model import AnswerModel
from mmm_train.run import pick_device
from mmm_train.terminal import Terminal

PLAIN = "mlp"
"""A method that every size of a model fits, if any does."""


def compare(
    methods: Sequence[str] | None = None,
    config: Config | None = None,
    folder: str | Path = "runs/compare",
    *,
    seeds: int = 1,
    plugins: Sequence[str | Path] = (),
    terminal: Terminal | None = None,
) -> Comparison:
    """Train fusion methods on the same data with the same settings, and compare them.

    Each run has a process of its own and leaves an ordinary run folder, `METHOD-seedN`, in the folder. Called again, it
    goes on: runs that are done stay, one that was stopped continues, and those that failed begin anew. Methods and
    seeds may be added; settings may not change.

    Args:
        methods: Their names; by default all of `mmm_fusion.available()`.
        config: Settings of every run, its `model.fusion` left aside; by default `compare_config()`.
        folder: Where the results go: new or empty, or a comparison to go on with.
        seeds: Runs of each method; the first has `config.train.seed`, the next that plus 1, and so on.
        plugins: Python files with fusion methods. They are run, here and in the process of each run.
        terminal: Where to show progress and result; by default standard output.
    Returns:
        The table. A method that failed is in it, with the reason.
    Raises:
        TrainError: A setting, the data or the folder cannot be used.
        mmm_fusion.FusionError: A method is not registered, or a file does not load.
        Interrupted: Ctrl-C; all is saved.
    """
    config, terminal = config or compare_config(), terminal or Terminal()
    files = list(dict.fromkeys(str(Path(each).resolve()) for each in plugins))
    for file in files:
        load_plugin(Path(file))
    names = _names(methods)
    _check(config, seeds)
    learn, test = read_sets(config.data)
    plan = Plan.open(Path(folder), config, learn, test)
    wanted = plan.add({name: source(name) for name in names}, range(config.train.seed, config.train.seed + seeds))
    todo = [member for member in wanted if member.status != "done"]
    if todo:
        _check_pictures((learn, test), terminal)
    with plan.claimed():
        _save(plan)  # from here on the folder is a comparison
        introduce(plan, wanted, terminal)
        try:
            with Board(terminal, len(wanted), todo) as board:
                for member in todo:
                    _train(plan, member, config, files, board)
                    _save(plan)
        except KeyboardInterrupt as stop:
            write_report(_save(plan))
            done = sum(member.status == "done" for member in wanted)
            raise Interrupted(
                f"Stopped with {done} of {len(wanted)} runs done, and saved. Go on with the same command."
            ) from stop
        comparison = _save(plan)
        write_report(comparison)
    show(comparison, terminal)
    return comparison


def _names(methods: Sequence[str] | None) -> list[str]:
    known = [method.name for method in mmm_fusion.available()]
    names = known if methods is None else list(dict.fromkeys(methods))
    for name in names:
        if name not in known:
            mmm_fusion.create(name, 1, 1, heads=1, dropout=0.0)  # raises, and knows what to say
    return names


def _check(config: Config, seeds: int) -> None:
    """Raise for what would make every run fail."""
    if seeds < 1:
        raise ConfigError(f"seeds must be 1 or more, got {seeds}.")
    if config.model.fusion_options:
        raise ConfigError(
            f"model.fusion_options must be empty in a comparison, got {config.model.fusion_options}. "
            "Options are those of one method. Leave them out."
        )
    AnswerModel(replace(config.model, fusion=PLAIN), words=2, answers=1)
    pick_device(config.train.device)


def _check_pictures(sets: Sequence[QuestionSet], terminal: Terminal) -> None:
    for data in sets:
        with terminal.bar(len(data.pictures), f"checking the pictures of {data.name}") as done:
            check_pictures(data, done)


def _train(plan: Plan, member: Member, config: Config, plugins: list[str], board: Board) -> None:
    folder = plan.folder / member.name
    if member.failure:  # what it failed of may have been mended since
        shutil.rmtree(folder, ignore_errors=True)
        member.failure = None
    own = replace(
        config,
        model=replace(config.model, fusion=member.method),
        train=replace(config.train, seed=member.seed),
    )
    job = {"folder": str(folder), "settings": own.to_dict(), "plugins": plugins}
    begin = time.perf_counter()
    board.begin(member)
    with started(job, plan.folder / f"{member.name}.log") as process:
        for event, values in process.events():
            if event == "failed":
                member.failure = values["reason"]
            elif event == "step":
                board.step(**values)
    if member.failure is None:
        member.measured = read_json(folder / RESULT)
    board.end(member, time.perf_counter() - begin)


def _save(plan: Plan) -> Comparison:
    comparison = summarise(plan)
    plan.save(as_json(comparison.rows))
    return comparison
