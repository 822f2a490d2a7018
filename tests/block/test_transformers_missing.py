"""`mmm_block.transformers` where transformers is missing, or too old."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

CODE = """
import sys, types
sys.modules["transformers"] = {module}
import mmm_block
assert "mmm_block.transformers" not in sys.modules
import mmm_block.transformers
"""
OLD = 'types.SimpleNamespace(__version__="5.23.4", __spec__=None)'


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "None",
            "mmm_block.transformers: transformers 5.24 or newer was expected, got none. "
            'Run `pip install "mmm-block[transformers]"`.',
        ),
        (
            OLD,
            "mmm_block.transformers: transformers 5.24 or newer was expected, got 5.23.4. "
            'Run `pip install --upgrade "mmm-block[transformers]"`.',
        ),
    ],
    ids=["none", "old"],
)
def test_one_clear_error(module: str, message: str) -> None:
    run = subprocess.run([sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True)
    assert re.findall(r"^ImportError: (.*)$", run.stderr, flags=re.MULTILINE) == [message]
