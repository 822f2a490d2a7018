"""The `mmm` command: parses its arguments, and turns the errors that a user can mend into one line each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mmm_train.config import PARTS, Config, merge, read_yaml
from mmm_train.errors import ConfigError, Interrupted, TrainError

if TYPE_CHECKING:
    from mmm_train.run import Run

USER_ERROR = 2
STOPPED = 130  # what shells show of a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `mmm` command.

    Args:
        arguments: Words after `mmm`; by default those of the command line.
    Returns:
        The exit status: 0, or 2 after an error that the user can mend, or 130 after Ctrl-C.
    """
    from mmm_fusion import FusionError

    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
        name = options.subcommand
        if name is None:
            parser.print_help()
            return 0
        given = parser.parse_args(arguments, defaults=False)
        COMMANDS[name](options[name], given[name])
    except ArgumentError as error:
        return _fail(_readable(error))
    except Interrupted as stop:
        return _fail(str(stop), status=STOPPED, style="yellow")
    except KeyboardInterrupt:
        return _fail("Stopped.", status=STOPPED, style="yellow")
    except (TrainError, FusionError) as error:
        return _fail(str(error))
    except OSError as error:  # a disk that is full, a folder that may not be written
        return _fail(f"{error}.")
    return 0


def build_parser() -> ArgumentParser:
    """The parser of the `mmm` command.

    Returns:
        A parser with one subcommand for each of `COMMANDS`.
    """
    parser = ArgumentParser(
        prog="mmm",
        description="Train models that answer questions about pictures, and ask them.",
        version=f"mmm-train {version('mmm-train')}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=False, metavar="COMMAND")
    for name, (add, text) in {
        "demo": (_demo_arguments, "train on easy-vqa's drawings and show how well it went"),
        "train": (_train_arguments, "train on a folder of pictures, or go on with a training"),
        "compare": (_compare_arguments, "train fusion methods on the same data and compare them"),
        "eval": (_eval_arguments, "let a trained model answer its test questions"),
        "ask": (_ask_arguments, "ask a trained model about a picture"),
    }.items():
        command = ArgumentParser(description=f"{text[0].upper()}{text[1:]}.", exit_on_error=False, allow_abbrev=False)
        add(command)
        commands.add_subcommand(name, command, help=text)
    return parser


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--fusion", default="mlp", help="fusion method; `python -m mmm_fusion` lists them")
    parser.add_argument("--out", type=str, help="run folder (default: runs/demo, or the first free runs/demo-N)")
    parser.add_argument("--epochs", type=int, default=32, help="passes over the training pictures")
    parser.add_argument("--seed", type=int, default=0, help="start of every random number")


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, help="run folder (default: runs/train, or the first free runs/train-N)")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with the training of this run folder")
    _add_settings(parser)


def _compare_arguments(parser: ArgumentParser) -> None:
    from jsonargparse.typing import PositiveInt

    parser.add_argument("--fusion", default="all", help="all, or fusion methods with commas between them")
    parser.add_argument("--seeds", type=PositiveInt, default=1, help="runs of each method, each with a seed of its own")
    parser.add_argument("--epochs", type=PositiveInt, help="passes over the training pictures")
    parser.add_argument("--out", type=str, default="runs/compare", help="folder of the comparison")
    _add_settings(parser)


def _eval_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", type=str, metavar="RUN", help="run folder; only data.* and train.device change the result"
    )
    _add_settings(parser)


def _ask_arguments(parser: ArgumentParser) -> None:
    from jsonargparse.typing import PositiveInt

    parser.add_argument("run", type=str, metavar="RUN", help="run folder")
    parser.add_argument("picture", type=str, metavar="PICTURE", help="picture file")
    parser.add_argument("question", type=str, metavar="QUESTION", help='such as "what color is the shape?"')
    parser.add_argument("--top", type=PositiveInt, default=5, help="how many answers to show")


def _add_settings(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=str, metavar="FILE", help="YAML with settings; flags win over it")
    for name, part in PARTS.items():
        parser.add_class_arguments(part, name)


def _demo(options: Namespace, given: Namespace) -> None:
    from mmm_train.demo import demo_config
    from mmm_train.training import train

    train(demo_config(options.fusion, options.epochs, options.seed), _folder(options.out, "demo"))


def _train(options: Namespace, given: Namespace) -> None:
    from mmm_train.training import resume, train

    if options.resume is None:
        train(Config.from_dict(_settings(given)), _folder(options.out, "train"))
    elif len(given.as_dict()) > 1:
        raise ConfigError("--resume goes on with the settings of the run. Leave out all others.")
    else:
        resume(options.resume)


def _compare(options: Namespace, given: Namespace) -> None:
    from mmm_train.comparison import compare

    config = _compare_settings(_settings(given), options.epochs)
    names = None if options.fusion == "all" else options.fusion.split(",")
    compare(names, config, options.out, seeds=options.seeds)


def _eval(options: Namespace, given: Namespace) -> None:
    from mmm_train.run import Run
    from mmm_train.training import evaluate_run

    evaluate_run(_with_settings(Run.open(options.run), _settings(given)))


def _ask(options: Namespace, given: Namespace) -> None:
    from mmm_train.run import Run
    from mmm_train.terminal import Terminal
    from mmm_train.training import ask

    run, terminal = Run.open(options.run), Terminal()
    found = ask(run, options.picture, options.question)
    if unknown := run.tokenizer.unknown_words(options.question):
        terminal.say(f"The training questions do not have: {', '.join(unknown)}.")
    terminal.answers(found[: options.top])


Command = Callable[[Namespace, Namespace], None]
"""Takes the options with their defaults, and those that the user gave."""
COMMANDS: dict[str, Command] = {"demo": _demo, "train": _train, "compare": _compare, "eval": _eval, "ask": _ask}


def _settings(given: Namespace) -> dict[str, Any]:
    """The settings that the user gave, nested: those of the YAML file, and over them the flags."""
    flags = {name: part for name, part in given.as_dict().items() if name in PARTS}
    if "config" not in given:
        return flags
    path = Path(given.config)
    settings = read_yaml(path)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name, part in PARTS.items():
        parser.add_class_arguments(part, name)
    try:
        checked = parser.parse_object(settings, defaults=False)
    except ArgumentError as error:
        raise ConfigError(f"{path}: {_readable(error)}") from error
    return merge(checked.as_dict(), flags)


def _compare_settings(given: dict[str, Any], epochs: int | None) -> Config:
    """The settings of every run of a comparison: easy-vqa has its own, which those given replace."""
    from mmm_train.data import EASY_VQA
    from mmm_train.demo import compare_config

    own_data = given.get("data", {}).get("train", EASY_VQA) != EASY_VQA
    budget = {} if epochs is None else {"train": {"epochs": epochs}}
    base = {} if own_data else compare_config().to_dict()
    return Config.from_dict(merge(merge(base, given), budget))


def _with_settings(run: Run, given: dict[str, Any]) -> Run:
    """The run with other settings; those of its model are fixed."""
    config = Config.from_dict(merge(run.config.to_dict(), given))
    for name, value in given.get("model", {}).items():
        own = getattr(run.config.model, name)
        if value != own:
            raise ConfigError(f"model.{name} of {run.folder} is {own}, got {value}. Leave it out, or train anew.")
    return replace(run, config=config)


def _folder(out: str | None, name: str) -> Path:
    from mmm_train.run import free_folder

    return free_folder(Path("runs") / name) if out is None else Path(out)


def _readable(error: ArgumentError) -> str:
    """jsonargparse's text in one line and in our form."""
    text = " ".join(str(error).split())
    text = re.sub(r"^Parser key \"([^\"]+)\":", r"\1:", text)
    text = re.sub(r"Expected a <class '(\w+)'>\. Got value: (.*)", r"expected \1, got \2", text)
    return text if text.endswith((".", "?")) else f"{text}."


def _fail(text: str, *, status: int = USER_ERROR, style: str = "red") -> int:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text(f"mmm: {text}", style=style), soft_wrap=True)
    return status
