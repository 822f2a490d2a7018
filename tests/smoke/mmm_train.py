"""The wheel with its siblings: `mmm` trains one step on four pictures, evaluates, and answers a question.

Arguments go to `mmm train`.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

MMM = Path(sys.executable).with_name("mmm")
SMALL = ("dim=8", "depth=1", "heads=2", "image_size=16", "encoder_dim=8", "encoder_depth=1", "encoder_heads=2")

with tempfile.TemporaryDirectory() as home:
    pictures, run = Path(home, "pictures"), Path(home, "run")
    pictures.mkdir()
    with open(pictures / "metadata.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file_name", "question", "answer"])
        for name in ("red", "blue", "green", "gray"):
            Image.new("RGB", (16, 16), name).save(pictures / f"{name}.png")
            lines.writerow([f"{name}.png", "what color is it?", name])
    settings = [f"--model.{setting}" for setting in SMALL] + sys.argv[1:]
    data = [f"--data.train={pictures}", f"--data.test={pictures}"]
    subprocess.run([MMM, "train", f"--out={run}", *data, "--train.epochs=1", *settings], check=True)
    subprocess.run([MMM, "eval", run], check=True)
    subprocess.run([MMM, "ask", run, pictures / "red.png", "what color is it?"], check=True)
