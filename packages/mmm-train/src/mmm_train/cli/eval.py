"""`mmm eval`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import add_plugin, add_settings, load_plugins, settings, with_settings

TEXT = "let a trained model answer its test questions"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "run", type=str, metavar="RUN", help="run folder; only data.* and train.device change the result"
    )
    add_plugin(parser)
    add_settings(parser)


def run(options: Namespace, given: Namespace) -> None:
    """Answer, and print the table."""
    from mmm_train.run import Run
    from mmm_train.training import evaluate_run

    load_plugins(options)
    evaluate_run(with_settings(Run.open(options.run), settings(given)))
