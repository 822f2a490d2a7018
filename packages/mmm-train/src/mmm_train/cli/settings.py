"""The arguments that several subcommands share: settings from YAML and flags, run folders, plug-in files."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mmm_train.config import PARTS, Config, merge, read_yaml
from mmm_train.errors import ConfigError

if TYPE_CHECKING:
    from mmm_train.run import Run


def add_settings(parser: ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add --config and a flag for each setting.

    Args:
        parser: Of a subcommand.
        without: Names of settings that it has no flag for.
    """
    parser.add_argument("--config", type=str, metavar="FILE", help="YAML with settings; flags win over it")
    for name, part in PARTS.items():
        parser.add_class_arguments(part, name, skip=set(without))


def add_plugin(parser: ArgumentParser) -> None:
    """Add --plugin."""
    parser.add_argument(
        "--plugin", type=str, action="append", metavar="FILE", help="Python file with fusion methods; may be repeated"
    )


def load_plugins(options: Namespace) -> None:
    """Register the fusion methods of the files that --plugin names."""
    from mmm_train.methods import load_plugin

    for path in options.plugin or ():
        load_plugin(Path(path))


def settings(given: Namespace) -> dict[str, Any]:
    """The settings that the user gave, nested: those of the YAML file, and over them the flags.

    A fusion method given by a flag may be a file; in YAML it is a name, for reading settings runs no code.
    """
    from mmm_train.methods import one_method

    flags = {name: part for name, part in given.as_dict().items() if name in PARTS}
    if "fusion" in flags.get("model", {}):
        flags["model"]["fusion"] = one_method(flags["model"]["fusion"])
    if "config" not in given:
        return flags
    path = Path(given.config)
    found = read_yaml(path)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name, part in PARTS.items():
        parser.add_class_arguments(part, name)
    try:
        checked = parser.parse_object(found, defaults=False)
    except ArgumentError as error:
        raise ConfigError(f"{path}: {readable(error)}") from error
    return merge(checked.as_dict(), flags)


def with_settings(run: Run, given: dict[str, Any]) -> Run:
    """The run with other settings; those of its model are fixed."""
    config = Config.from_dict(merge(run.config.to_dict(), given))
    for name, value in given.get("model", {}).items():
        own = getattr(run.config.model, name)
        if value != own:
            raise ConfigError(f"model.{name} of {run.folder} is {own}, got {value}. Leave it out, or train anew.")
    return replace(run, config=config)


def out_folder(out: str | None, name: str) -> Path:
    """The folder that --out names, or the first free one."""
    from mmm_train.run import free_folder

    return free_folder(Path("runs") / name) if out is None else Path(out)


def readable(error: ArgumentError) -> str:
    """jsonargparse's text in one line and in our form."""
    text = " ".join(str(error).split())
    text = re.sub(r"^Parser key \"([^\"]+)\":", r"\1:", text)
    text = re.sub(r"Expected a <class '(\w+)'>\. Got value: (.*)", r"expected \1, got \2", text)
    return text if text.endswith((".", "?")) else f"{text}."
