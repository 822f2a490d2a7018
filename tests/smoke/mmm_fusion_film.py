"""The example's wheel beside those of mmm-train, as any plug-in."""

import runpy
import sys
from pathlib import Path

sys.argv[1:] = ["film", "mmm-fusion-film"]
runpy.run_path(str(Path(__file__).with_name("plugin.py")))
