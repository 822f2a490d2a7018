"""`python -m mmm_fusion`: lists the fusion methods, and checks one against the contract."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmm_fusion.listing import print_listing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words of the command line; None: those of this process.
    Returns:
        The exit code.
    """
    words = parser()
    given = words.parse_args(arguments)
    if given.json and given.command:
        words.error(f"--json is for the listing, and does not go with {given.command}")
    if given.command is None:
        return print_listing(as_json=given.json)
    from mmm_fusion.check import check  # the kit is not needed for a listing

    return check(given.name, given.options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        prog="python -m mmm_fusion",
        description="List the fusion methods that are loaded, and the plug-ins that failed; exits 1 if any failed.",
    )
    main.add_argument("--json", action="store_true", help="list as JSON")
    commands = main.add_subparsers(dest="command", metavar="command")
    check = commands.add_parser(
        "check",
        help="put a method to the rules of the contract",
        description="Put a method to the rules of the contract. Exits 0 if it keeps them all, 1 if it breaks one, "
        "and 2 if it is not found or does not take these options.",
    )
    check.add_argument("name", help="the name of a registered method, or a Python file: ./my_fusion.py")
    check.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="the method's own, after its name: key=value ..., or a JSON object",
    )
    return main


if __name__ == "__main__":
    sys.exit(main())
