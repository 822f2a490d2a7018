"""What holds for every test: a fixed seed, no uninitialised memory that looks like a result, one thread."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

FILE = re.compile(r"# (\w+\.py)\n")
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", flags=re.MULTILINE)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure() -> None:
    # Under deterministic algorithms torch.empty and its relatives hand out NaN (the largest integer for
    # integers), so an output that no kernel wrote shows. It holds for the whole process, fixtures included.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The tensors of tests are small, and two workers share the cores. A test of threads sets its own number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def no_numbers(line: str) -> str:
    """A line of output without what differs from machine to machine."""
    return re.sub(r"[\s─━]+", " ", re.sub(r"[\d.,]*\d", "#", line)).strip()


@pytest.fixture
def run_blocks(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs the Python blocks of one page in order, in one namespace, and compares what they print.

    If asked to, it runs the `mmm` commands of console sessions as well. Each line that the page shows below one is
    printed; numbers, and how wide a table is, may be others.
    """

    def run_session(example: Example) -> None:
        from mmm_train.cli import main

        for session in example.parsed.replace("\\\n", " ").split("$ mmm ")[1:]:
            command, _, shown = session.partition("\n")
            status = main(shlex.split(command))
            printed, promised = (list(map(no_numbers, x.splitlines())) for x in (capsys.readouterr().out, shown))
            assert status == 0, command
            assert [line for line in printed if line in promised] == promised, f"{command}: {printed}"

    def run(page: Path, *, commands: bool = False) -> None:
        sessions = [CodeBlockParser("console", run_session)] if commands else []
        document = Sybil([PythonCodeBlockParser(), *sessions], path=str(page.parent)).parse(page)
        for example in document.examples():
            if file := FILE.match(example.parsed):
                Path(file[1]).write_text(example.parsed)
            example.evaluate()
            printed = capsys.readouterr().out.splitlines()
            promised = PRINTED.findall(example.parsed)
            assert [line for line in printed if line in promised] == promised, f"{page}, line {example.line}: {printed}"

    return run
