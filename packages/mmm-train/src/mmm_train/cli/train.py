"""`mmm train`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import add_plugin, add_settings, load_plugins, out_folder, settings
from mmm_train.config import Config
from mmm_train.errors import ConfigError

TEXT = "train on a folder of pictures, or go on with a training"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=str, help="run folder (default: runs/train, or the first free runs/train-N)")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with the training of this run folder")
    add_plugin(parser)
    add_settings(parser)


def run(options: Namespace, given: Namespace) -> None:
    """Train, or go on."""
    from mmm_train.training import resume, train

    if options.resume is not None and set(given.as_dict()) - {"resume", "plugin"}:
        raise ConfigError("--resume goes on with the settings of the run. Leave out all others.")
    load_plugins(options)
    if options.resume is not None:
        resume(options.resume)
    else:
        train(Config.from_dict(settings(given)), out_folder(options.out, "train"))
