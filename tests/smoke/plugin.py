"""A plug-in's wheel beside those of mmm-train: listed, and one step trained with it, by name.

Arguments: the method's name, and the distribution it comes from.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import mmm_fusion

method, distribution = sys.argv[1:]
assert method in [each.name for each in mmm_fusion.available()]
listing = subprocess.run([sys.executable, "-m", "mmm_fusion"], check=True, capture_output=True, text=True).stdout
print(listing)
assert any(line.split()[:2] == [method, distribution] for line in listing.splitlines())

mmm = Path(sys.executable).with_name("mmm")
plugins = json.loads(subprocess.run([mmm, "plugins", "--json"], check=True, capture_output=True, text=True).stdout)
assert (method, distribution) in [(each["name"], each["distribution"]) for each in plugins["methods"]]
assert plugins["failures"] == []

sys.argv[1:] = [f"--model.fusion={method}"]
runpy.run_path(str(Path(__file__).with_name("mmm_train.py")))
