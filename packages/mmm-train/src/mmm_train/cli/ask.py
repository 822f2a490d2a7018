"""`mmm ask`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mmm_train.cli.settings import add_plugin, load_plugins

TEXT = "ask a trained model about a picture"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    from jsonargparse.typing import PositiveInt

    parser.add_argument("run", type=str, metavar="RUN", help="run folder")
    parser.add_argument("picture", type=str, metavar="PICTURE", help="picture file")
    parser.add_argument(
        "question",
        type=str,
        nargs="?",
        default="",
        metavar="QUESTION",
        help='such as "what color is the shape?"; left out: a caption, if the run has learnt any',
    )
    parser.add_argument("--top", type=PositiveInt, default=5, help="how many answers to show")
    add_plugin(parser)


def run(options: Namespace, given: Namespace) -> None:
    """Print the answers, the most probable first."""
    from mmm_train.run import Run
    from mmm_train.terminal import Terminal
    from mmm_train.training import ask

    load_plugins(options)
    run, terminal = Run.open(options.run), Terminal()
    found = ask(run, options.picture, options.question, top=options.top)
    if other := run.other_method():
        terminal.say(other)
    if unknown := run.tokenizer.unknown_words(options.question):
        terminal.say(f"The training texts do not have: {', '.join(unknown)}.")
    terminal.answers(found)
