"""`compare`: trains what is not trained yet, each run in a process of its own, and writes the results."""

from __future__ import annotations

import shutil
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mmm_fusion
from mmm_block.origins import file_of, source
from mmm_train.comparison.display import Board, introduce, show
from mmm_train.comparison.plan import Member, Plan, brief
from mmm_train.comparison.processes import Process, Processes
from mmm_train.comparison.report import write_report
from mmm_train.comparison.summary import Comparison, as_json, summarise
from mmm_train.config import Config
from mmm_train.data import SPECIAL, QuestionSet, check_pictures, read_sets
from mmm_train.demo import compare_config
from mmm_train.errors import ConfigError, Interrupted
from mmm_train.methods import load_plugin
from mmm_train.model import new_model
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
    jobs: int | None = None,
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
        jobs: Runs at once, which share torch's threads out; by default as many as it has threads on a CPU, each with
            one, and one on a GPU.
        plugins: Python files with fusion methods. Each is run here, and in the process of each run of its methods.
            Files that are loaded already need not be named.
        terminal: Where to show progress and result; by default standard output.
    Returns:
        The table. A method that failed is in it, with the reason.
    Raises:
        TrainError: A setting, the data or the folder cannot be used.
        mmm_fusion.FusionError: A method is not registered, or a file does not load.
        Interrupted: Ctrl-C; all is saved.
    """
    config, terminal = config or compare_config(), terminal or Terminal()
    for file in plugins:
        load_plugin(Path(file))
    names = _names(methods)
    jobs = _check(config, seeds, jobs)
    learn, test = read_sets(config.data)
    plan = Plan.open(Path(folder), config, learn, test)
    sources, numbers = {name: source(name) for name in names}, range(config.train.seed, config.train.seed + seeds)
    if any(member.status != "done" for member in plan.add(sources, numbers)):
        _check_pictures((learn, test), terminal)
    with plan.claimed() as lock:
        wanted = plan.add(sources, numbers)  # once more: now nobody else changes it
        todo = [member for member in wanted if member.status != "done"]
        _save(plan)  # from here on the folder is a comparison
        introduce(plan, wanted, terminal)
        try:
            with Board(terminal, len(wanted), todo) as board, Processes(lock) as processes:
                _train(plan, [(member, _job(plan, member, config, jobs)) for member in todo], jobs, board, processes)
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
        if "place" in source(name) and not file_of(name):
            raise ConfigError(
                f"fusion method '{name}' is a class of this process, and each run has a process of its own. "
                "Write it to a file, and name that in `plugins`."
            )
    return names


def _check(config: Config, seeds: int, jobs: int | None) -> int:
    """Raise for what would make every run fail; returns the number of runs at once."""
    for name, number in {"seeds": seeds, "jobs": jobs}.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be 1 or more, got {number}.")
    if config.model.fusion_options:
        raise ConfigError(
            f"model.fusion_options must be empty in a comparison, got {config.model.fusion_options}. "
            "Options are those of one method. Leave them out."
        )
    new_model(replace(config.model, fusion=PLAIN), len(SPECIAL))
    device = pick_device(config.train.device)
    return jobs or (torch.get_num_threads() if device.type == "cpu" else 1)


def _check_pictures(sets: Sequence[QuestionSet], terminal: Terminal) -> None:
    for data in sets:
        with terminal.bar(len(data.pictures), f"checking the pictures of {data.name}") as done:
            check_pictures(data, done)


def _job(plan: Plan, member: Member, config: Config, jobs: int) -> dict[str, Any]:
    """What the process of a run is told to do."""
    own = replace(
        config,
        model=replace(config.model, fusion=member.method),
        train=replace(config.train, seed=member.seed),
    )
    file = file_of(member.method)
    return {
        "folder": str(plan.folder / member.name),
        "settings": own.to_dict(),
        "path": sys.path,
        "plugin": file and str(file),
        "source": member.source,
        "threads": max(1, torch.get_num_threads() // jobs),
    }


def _train(
    plan: Plan, todo: Sequence[tuple[Member, dict[str, Any]]], jobs: int, board: Board, processes: Processes
) -> None:
    waiting, running = deque(todo), dict[Process, Member]()
    while waiting or running:
        while waiting and len(running) < jobs:
            member, job = waiting.popleft()
            folder = plan.folder / member.name
            if member.failure and folder.exists():  # what it failed of may have been mended since
                shutil.rmtree(folder)
            member.failure = None
            board.begin(member)
            running[processes.start(job, plan.folder / f"{member.name}.log")] = member
        process, event, values = processes.next_event()
        member = running[process]
        if event == "step":
            board.step(member, **values)
        elif event == "failed":
            member.failure = brief(values["reason"])
        elif event == "ended":
            del running[process]
            plan.look_at(member)
            if member.status == "open":
                member.failure = "ended before it was done."
            board.end(member)
            _save(plan)


def _save(plan: Plan) -> Comparison:
    comparison = summarise(plan)
    plan.save(as_json(comparison.rows))
    return comparison
