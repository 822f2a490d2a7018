"""`mmm compare`."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import add_plugin, add_settings, load_plugins, settings
from mmm_train.config import Config, merge

TEXT = "train fusion methods on the same data and compare them"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--fusion", default="all", help="all, or methods and files with methods, with commas between them"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, each with a seed of its own")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a thread of the CPU, one on a GPU)")
    parser.add_argument("--epochs", type=int, help="passes over the training pictures (default: 8)")
    parser.add_argument("--out", type=str, default="runs/compare", help="folder of the comparison")
    add_plugin(parser)
    add_settings(parser, without=("fusion", "fusion_options", "epochs"))


def run(options: Namespace, given: Namespace) -> int:
    """Train what is not trained yet, and report; returns 1 if a method failed."""
    from mmm_train.comparison import compare
    from mmm_train.methods import methods_and_files

    plugins = load_plugins(options)
    names, files = methods_and_files(options.fusion)
    config = compare_settings(settings(given), options.epochs)
    found = compare(names, config, options.out, seeds=options.seeds, jobs=options.jobs, plugins=[*plugins, *files])
    return 1 if found.failed else 0


def compare_settings(given: dict[str, Any], epochs: int | None) -> Config:
    """The settings of every run: for easy-vqa those of `compare_config`, and over them what is given."""
    from mmm_train.data import EASY_VQA
    from mmm_train.demo import compare_config

    own_data = given.get("data", {}).get("train", EASY_VQA) != EASY_VQA
    budget = {} if epochs is None else {"train": {"epochs": epochs}}
    base = {} if own_data else compare_config().to_dict()
    return Config.from_dict(merge(merge(base, given), budget))
