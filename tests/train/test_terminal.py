"""The live line of a training, as a terminal shows it."""

import io
from types import SimpleNamespace

from rich.console import Console

from mmm_train import Terminal


def test_the_live_line_says_loss_speed_and_time_left() -> None:
    trainer = SimpleNamespace(steps=2500, place=SimpleNamespace(step=0, epoch=0), config=SimpleNamespace(epochs=10))
    shown = io.StringIO()
    with Terminal(Console(file=shown, force_terminal=True, width=120)).progress(trainer) as progress:
        progress.step(3, 1, 2.5, 311.0)
        progress.bars.refresh()
    line = Console(file=io.StringIO()).render_str(shown.getvalue()).plain
    for part in ("epoch 1/10", "step 3/2,500", "loss 2.500", "311 images/s", "left"):
        assert part in line
