"""`mmm plugins`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

TEXT = "list the fusion methods, and the plug-ins that fail to load"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="the list as JSON")


def run(options: Namespace, given: Namespace) -> int:
    """Print the list; returns 1 if a plug-in failed to load."""
    from mmm_fusion.listing import print_listing

    return print_listing(as_json=options.json)
