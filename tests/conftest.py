"""What holds for every test: a fixed seed, no uninitialised memory that looks like a result, one thread."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

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


@pytest.fixture
def run_blocks(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], None]:
    """Runs the Python blocks of one page in order, in one namespace, and compares what they print."""

    def run(page: Path) -> None:
        document = Sybil([PythonCodeBlockParser()], path=str(page.parent)).parse(page)
        for example in document.examples():
            if file := FILE.match(example.parsed):
                Path(file[1]).write_text(example.parsed)
            example.evaluate()
            printed = capsys.readouterr().out.splitlines()
            promised = PRINTED.findall(example.parsed)
            assert [line for line in printed if line in promised] == promised, f"{page}, line {example.line}: {printed}"

    return run
