"""`mmm compare`."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import add_plugin, add_settings, load_plugins, settings
from mmm_train.config import Config, TrainConfig, merge

TEXT = "train fusion methods on the same data and compare them"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--fusion", default="all", help="all, or methods and files with methods, with commas between them"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, each with a seed of its own")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a thread of the CPU, one on a GPU)")
    parser.add_argument(
        "--epochs", type=int, help="passes over the training pictures; if not given, 8 for easy-vqa and 10 for a folder"
    )
    parser.add_argument("--out", type=str, default="runs/compare", help="folder of the comparison")
    add_plugin(parser)
    add_settings(parser, without=("fusion", "fusion_options", "epochs"))


def run(options: Namespace, given: Namespace) -> int:
    """Train what is not trained yet, and report; returns 1 if a method failed."""
    from mmm_train.comparison import compare
    from mmm_train.methods import several_methods

    load_plugins(options)
    names = several_methods(options.fusion)
    config = compare_settings(settings(given), options.epochs)
    found = compare(names, config, options.out, seeds=options.seeds, jobs=options.jobs)
    return 1 if found.failed else 0


def compare_settings(given: dict[str, Any], epochs: int | None) -> Config:
    """The settings of every run: for easy-vqa those of `compare_config`, and over them what is given.

    If nothing else is given, a run is evaluated once, at its end.
    """
    from mmm_train.data import EASY_VQA
    from mmm_train.demo import compare_config

    own_data = given.get("data", {}).get("train", EASY_VQA) != EASY_VQA
    budget = {} if epochs is None else {"train": {"epochs": epochs}}
    base = {} if own_data else compare_config().to_dict()
    found = merge(merge(base, given), budget)
    if "evaluate" not in given.get("train", {}):
        found["train"]["evaluate"] = found["train"].get("epochs", TrainConfig.epochs)
    return Config.from_dict(found)
