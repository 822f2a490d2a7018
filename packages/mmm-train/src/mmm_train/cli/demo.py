"""`mmm demo`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import out_folder

TEXT = "train on easy-vqa's drawings and show how well it went"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--fusion", default="mlp", help="fusion method, or a file with one; `mmm plugins` lists them")
    parser.add_argument("--out", type=str, help="run folder (default: runs/demo, or the first free runs/demo-N)")
    parser.add_argument("--epochs", type=int, default=32, help="passes over the training pictures")
    parser.add_argument("--seed", type=int, default=0, help="start of every random number")


def run(options: Namespace, given: Namespace) -> None:
    """Train with the settings of the demo."""
    from mmm_train.demo import demo_config
    from mmm_train.methods import one_method
    from mmm_train.training import train

    config = demo_config(one_method(options.fusion), options.epochs, options.seed)
    train(config, out_folder(options.out, "demo"))
