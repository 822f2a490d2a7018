"""`mmm plugins`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

TEXT = "list the fusion methods, and the plug-ins that fail to load"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="the list as JSON")


def run(options: Namespace, given: Namespace) -> int:
    """Print the list; returns 1 if a plug-in failed to load."""
    import json

    from mmm_fusion.__main__ import main
    from mmm_train.methods import listing

    if not options.json:
        return main()
    found = listing()
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if found["failures"] else 0
