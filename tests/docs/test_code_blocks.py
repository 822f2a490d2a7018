"""Every Python block of the documentation runs, and every comment behind a `print` is what it prints.

A block whose first line is a comment with the name of a file, `# my_fusion.py`, is that file too: the blocks after it
find it in the working folder.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

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
# What these need is not here: tests/parity runs them.
ELSEWHERE = {Path(f"docs/how-to/{name}.md") for name in ("transformers", "trainer", "export")}
COMMANDS = {Path("docs/tutorials/own-pictures.md")}
"""Pages whose console sessions are run as well."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE], ids=str)
def test_python_blocks_run(
    page: Path, run_blocks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmm_fusion.local._here", {})  # what a page registers goes with it
    monkeypatch.setenv("COLUMNS", "100")
    run_blocks(ROOT / page, commands=page in COMMANDS)


def test_a_wrong_promise_is_seen(run_blocks: Callable[..., None], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x + 1)  # 2\nprint(x)  # 3\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 5: \['2', '1'\]"):
        run_blocks(page)


def test_a_wrong_session_is_seen(run_blocks: Callable[..., None], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ mmm plugins --json\n{\nno such line\n```\n")
    run_blocks(page)
    with pytest.raises(AssertionError, match="plugins --json: "):
        run_blocks(page, commands=True)
