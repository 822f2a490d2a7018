"""Every Python block of the documentation runs, and every comment behind a `print` is what it prints.

A block whose first line is a comment with the name of a file, `# my_fusion.py`, is that file too: the blocks after it
find it in the working folder.
"""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "packages/*/README.md",
        "packages/*/src/**/*.md",
        "examples/*/README.md",
    )
    for path in ROOT.glob(pattern)
    if "```python" in path.read_text()
)
FILE = re.compile(r"# (\w+\.py)\n")
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", flags=re.MULTILINE)


def run_blocks(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the blocks of one page in order, in one namespace."""
    document = Sybil([PythonCodeBlockParser()], path=str(page.parent)).parse(page)
    for example in document.examples():
        if file := FILE.match(example.parsed):
            Path(file[1]).write_text(example.parsed)
        example.evaluate()
        printed = capsys.readouterr().out.splitlines()
        promised = PRINTED.findall(example.parsed)
        assert [line for line in printed if line in promised] == promised, f"{page}, line {example.line}: {printed}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmm_fusion.local._here", {})  # what a page registers goes with it
    run_blocks(ROOT / page, capsys)


def test_a_wrong_promise_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x + 1)  # 2\nprint(x)  # 3\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 5: \['2', '1'\]"):
        run_blocks(page, capsys)
