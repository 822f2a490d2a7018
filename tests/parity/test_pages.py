"""The pages of the documentation whose Python blocks need what only this session installs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/how-to/transformers.md", "docs/how-to/trainer.md"])
def test_python_blocks_run(page, run_blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / page)
