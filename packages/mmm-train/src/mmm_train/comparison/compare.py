"""`compare`: trains what is not trained yet, each run in a process of its own, and writes the results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import mmm_fusion
from mmm_train.checkpoint import read_json
from mmm_train.comparison.display import Board, show
from mmm_train.comparison.member import RESULT
from mmm_train.comparison.plan import Member, Plan, blind_scores, in_common, member_config
from mmm_train.comparison.processes import started
from mmm_train.comparison.report import write_report
from mmm_train.comparison.summary import Comparison, as_json, summarise
from mmm_train.config import Config
from mmm_train.data import read_sets
from mmm_train.demo import compare_config
from mmm_train.errors import ConfigError, Interrupted
from mmm_train.run import pick_device
from mmm_train.terminal import Terminal


def compare(
    methods: Sequence[str] | None = None,
    config: Config | None = None,
    folder: str | Path = "runs/compare",
    *,
    seeds: int = 1,
    terminal: Terminal | None = None,
) -> Comparison:
    """Train fusion methods on the same data with the same settings, and compare them.

    Each run is an ordinary run folder `METHOD-seedN` in the folder. Called again, it goes on where it stopped: runs that
    are done stay, and those that failed are trained anew. Methods and seeds may be added.

    Args:
        methods: Their names; by default all of `mmm_fusion.available()`.
        config: Settings of every run, its `model.fusion` left aside; by default `compare_config()`.
        folder: Where the results go: new, empty, or a comparison with the same settings.
        seeds: Runs of each method; the first has `config.train.seed`, the next that plus 1, and so on.
        terminal: Where to show progress and result; by default standard output.
    Returns:
        The table. A method that failed is in it, with the reason.
    Raises:
        TrainError: A setting, the data or the folder cannot be used.
        mmm_fusion.FusionError: A method is not registered.
        Interrupted: Ctrl-C; all is saved.
    """
    config, terminal = config or compare_config(), terminal or Terminal()
    if seeds < 1:
        raise ConfigError(f"seeds must be 1 or more, got {seeds}.")
    names = _names(methods)
    learn, test = read_sets(config.data)
    pick_device(config.train.device)
    plan = Plan(Path(folder), in_common(config, learn, test), blind_scores(learn, test))
    plan.load()
    wanted = plan.add(names, range(config.train.seed, config.train.seed + seeds))
    plan.save({})
    try:
        _train_all(plan, wanted, config, terminal)
    except KeyboardInterrupt as stop:
        _finish(plan)
        done = sum(member.status == "done" for member in wanted)
        raise Interrupted(
            f"Stopped, and saved; {done} of {len(wanted)} runs are done. Go on by the same command."
        ) from stop
    comparison = _finish(plan)
    show(comparison, terminal)
    return comparison


def _names(methods: Sequence[str] | None) -> dict[str, str]:
    """The sources of the methods by their names."""
    known = {method.name: "" for method in mmm_fusion.available()}
    if methods is None:
        return known
    for name in methods:
        if name not in known:
            mmm_fusion.create(name, 1, 1, heads=1, dropout=0.0)  # raises, and knows what to say
    return {name: known[name] for name in methods}


def _train_all(plan: Plan, wanted: Sequence[Member], config: Config, terminal: Terminal) -> None:
    todo = [member for member in wanted if member.status != "done"]
    with Board(terminal, len(wanted), todo) as board:
        for member in todo:
            _train(plan, member, config, board)
            plan.save(as_json(summarise(plan).rows))


def _train(plan: Plan, member: Member, config: Config, board: Board) -> None:
    folder = plan.folder / member.name
    if member.failure:  # what it is made of may have been mended since
        shutil.rmtree(folder, ignore_errors=True)
        member.failure = None
    job = {"folder": str(folder), "settings": member_config(config, member).to_dict()}
    before = time.perf_counter()
    board.begin(member)
    with started(job, plan.folder / f"{member.name}.log") as process:
        for event in process.events():
            if event.kind == "failed":
                member.failure = event.values["reason"]
            elif event.kind == "step":
                board.step(**event.values)
    if member.failure is None:
        member.measured = read_json(folder / RESULT)
    board.end(member, time.perf_counter() - before)


def _finish(plan: Plan) -> Comparison:
    comparison = summarise(plan)
    plan.save(as_json(comparison.rows))
    write_report(comparison)
    return comparison
