"""`python -m mmm_block`: makes checkpoints of other libraries into ones of `MultiModalMamba`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from mmm_block.errors import CheckpointError, ConfigError
from mmm_fusion import FusionError

USER_ERROR, OTHER_ERROR = 2, 1
DTYPES = ("float32", "bfloat16", "float16")
FUSION = ("fusion_method", "options", "heads", "image_token_id")
"""Options that only a model with an encoder has."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(USER_ERROR, f"{self.prog}: {message}. See --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words of the command line; None: those of this process.
    Returns:
        The exit code: 2 after an error that the user can mend, 1 after one of the machine, such as a full disk.
    """
    words = parser()
    given = words.parse_args(arguments)
    if given.command is None:
        words.print_help()
        return 0
    if given.encoder is None and (named := [name for name in FUSION if getattr(given, name) is not None]):
        option = "--fusion" if named[0] == "fusion_method" else f"--{named[0].replace('_', '-')}"
        return _fail(f"{option} is for a model that reads images: give --encoder as well.", USER_ERROR)
    try:
        return convert(given)
    except (CheckpointError, ConfigError, FusionError) as error:
        return _fail(str(error), USER_ERROR)
    except OSError as error:
        return _fail(f"{error}.", OTHER_ERROR)


def convert(given: argparse.Namespace) -> int:
    """Convert, and say what has been made."""
    from mmm_block.convert import convert_checkpoint
    from mmm_block.weights import own_tensors
    from mmm_fusion.check import parsed

    fields: dict[str, Any] = {name: getattr(given, name) for name in FUSION if getattr(given, name) is not None}
    if "options" in fields:
        fields["fusion_options"] = parsed(fields.pop("options"))
    model = convert_checkpoint(
        given.source,
        given.target,
        encoder=given.encoder,
        dtype=getattr(torch, given.dtype) if given.dtype else None,
        allow_pickle=given.allow_pickle,
        **fields,
    )
    count = sum(each.numel() for each in own_tensors(model).values())
    images = "" if given.encoder is None else f" Its fusion method '{model.config.fusion_method}' has to be trained."
    print(f"{given.target}: a MultiModalMamba of {count:,} parameters.{images}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = Parser(prog="python -m mmm_block", description="Tools for MultiModalMamba.")
    commands = main.add_subparsers(dest="command", metavar="command")
    convert = commands.add_parser(
        "convert",
        help="make a checkpoint of another library into one of MultiModalMamba",
        description="Make a Mamba checkpoint of state-spaces (mamba_ssm) or transformers (mamba, falcon_mamba) into "
        "one of MultiModalMamba; with --encoder into one that reads images, whose fusion method has to be trained.",
        allow_abbrev=False,
    )
    place = "a folder with a config.json, a file of weights beside one, or a repository of the Hugging Face Hub"
    convert.add_argument("source", metavar="SOURCE", help=place)
    convert.add_argument("target", metavar="TARGET", help="a folder that is new or empty")
    convert.add_argument(
        "--encoder",
        metavar="SOURCE",
        help="a vision tower: ViT, DeiT, CLIP or SigLIP of transformers, or a plain ViT of timm; from places as above",
    )
    convert.add_argument("--fusion", dest="fusion_method", metavar="METHOD", help="a name of `python -m mmm_fusion`")
    convert.add_argument("--options", nargs="+", metavar="OPTION", help="the method's own: key=value ..., or JSON")
    convert.add_argument("--heads", type=int, metavar="N", help="attention heads of the fusion method")
    convert.add_argument(
        "--image-token-id",
        type=int,
        metavar="ID",
        help="the token that marks an image; none: an image before each text",
    )
    convert.add_argument("--dtype", choices=DTYPES, help="of the weights; none: as they are")
    convert.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights that are there as a pickle alone; only if you trust their makers",
    )
    return main


def _fail(text: str, status: int) -> int:
    print(f"python -m mmm_block: {' '.join(text.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
