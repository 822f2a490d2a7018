"""The example's wheel beside those of mmm-train: listed as a plug-in, and one step trained with it, by name."""

import runpy
import sys
from pathlib import Path

import mmm_fusion

assert "film" in [method.name for method in mmm_fusion.available()]
sys.argv.append("--model.fusion=film")
runpy.run_path(str(Path(__file__).with_name("mmm_train.py")))
