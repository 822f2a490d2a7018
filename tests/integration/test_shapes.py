"""The shapes that the annotations promise are those that the functions take and give."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["mmm_core", "mmm_vit", "mmm_fusion", "mmm_block"])
def test_annotated_shapes_hold_at_run_time(package: str) -> None:
    program = Path(__file__).with_name("run_time_shapes.py")
    run = subprocess.run([sys.executable, program, package], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
