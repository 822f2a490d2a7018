"""The `mmm` command: one module a subcommand; errors that a user can mend become one line each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mmm_train.cli import ask, compare, demo, eval, plugins, train
from mmm_train.cli.settings import readable
from mmm_train.errors import Interrupted, TrainError

USER_ERROR = 2
STOPPED = 130  # what shells show of a program that Ctrl-C ended


class Command(Protocol):
    """The module of a subcommand."""

    TEXT: str
    """What it does, as a line of the help."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, options: Namespace, given: Namespace) -> int | None:
        """Do it.

        Args:
            options: The arguments with their defaults.
            given: Those that the user gave.
        Returns:
            The exit status; None means 0.
        """


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "train": train,
    "compare": compare,
    "eval": eval,
    "ask": ask,
    "plugins": plugins,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `mmm` command.

    Args:
        arguments: Words after `mmm`; by default those of the command line.
    Returns:
        The exit status: 0, or 1 where something that was looked at or compared failed, or 2 after an error that the
        user can mend, or 130 after Ctrl-C.
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
        return COMMANDS[name].run(options[name], given[name]) or 0
    except ArgumentError as error:
        return _fail(readable(error))
    except Interrupted as stop:
        return _fail(str(stop), status=STOPPED, style="yellow")
    except KeyboardInterrupt:
        return _fail("Stopped.", status=STOPPED, style="yellow")
    except (TrainError, FusionError) as error:
        return _fail(str(error))
    except OSError as error:  # a disk that is full, a folder that may not be written
        return _fail(f"{error}.")


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
    for name, command in COMMANDS.items():
        text = command.TEXT
        own = ArgumentParser(description=f"{text[0].upper()}{text[1:]}.", exit_on_error=False, allow_abbrev=False)
        command.add_arguments(own)
        commands.add_subcommand(name, own, help=text)
    return parser


def _fail(text: str, *, status: int = USER_ERROR, style: str = "red") -> int:
    from rich.console import Console
    from rich.text import Text

    from mmm_train.terminal import printable

    console = Console(stderr=True, highlight=False)
    console.print(Text(printable(f"mmm: {text}"), style=style), soft_wrap=True)
    return status
