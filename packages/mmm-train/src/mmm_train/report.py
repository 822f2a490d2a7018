"""The report of a run: the curves as a picture, and one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mmm_block.files import write_whole
from mmm_train.data import Picture, open_picture
from mmm_train.evaluate import Answered, Scores
from mmm_train.seeds import derive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmm_train.run import Run

SHOWN = 24
"""Pictures of each of the two grids."""
ASKED = 4
"""Questions shown below a picture."""
THUMBNAIL = 192
"""Longest side of a picture in the report, in pixels."""
COLOURS = {"all": "#0f766e", "yes_no": "#94a3b8", "open": "#d97706"}
LABELS = {"all": "all", "yes_no": "yes/no", "open": "open"}


def write_report(run: Run, rows: Mapping[str, Scores], answered: Sequence[Answered]) -> None:
    """Write curves.png and report.html into the run folder.

    Args:
        run: The run.
        rows: Scores by what reached them, that of a predictor without pictures first.
        answered: Every test question with the answer that was given.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    curves = draw_curves(run.metrics(), next(iter(rows.values())))
    write_whole(run.folder / "curves.png", curves)
    environment = Environment(
        loader=PackageLoader("mmm_train"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sample, mistakes = _choose(run, answered)
    page = environment.get_template("report.html").render(
        run=run, rows=rows, curves=data_uri(curves), sample=_cards(sample), mistakes=_cards(mistakes)
    )
    write_whole(run.folder / "report.html", page)


def draw_curves(metrics: Sequence[Mapping[str, Any]], question_only: Scores) -> bytes:
    """Draw the loss of each step, and the accuracy of each evaluation.

    Args:
        metrics: The lines of metrics.jsonl.
        question_only: Scores of a predictor without pictures, drawn as dotted lines.
    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_loss(left, [line for line in metrics if "loss" in line])
    _draw_accuracy(right, [line for line in metrics if "test" in line], question_only)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_xlabel("step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _draw_loss(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    middle, reach = np.arange(len(losses)), len(losses) // 100
    first, end = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(losses))
    total = np.cumsum([0.0, *losses])
    smooth = (total[end] - total[first]) / (end - first)
    axes.plot(steps, losses, color=COLOURS["yes_no"], alpha=0.4, linewidth=0.8)
    axes.plot(steps, smooth, color=COLOURS["all"])
    axes.set_title("loss in training", loc="left")
    axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, lines: Sequence[Mapping[str, Any]], question_only: Scores) -> None:
    for name, base in question_only.parts().items():
        if base is None:
            continue
        points = [(line["step"], 100 * line["test"][name]) for line in lines]
        axes.plot(*zip(*points, strict=True), color=COLOURS[name], label=LABELS[name], marker=".")
        axes.axhline(100 * base, color=COLOURS[name], linestyle=":", linewidth=1)
    axes.set_title("right answers on the test pictures, %", loc="left")
    axes.set_ylim(0, 102)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="dotted:\nquestion only")


def _choose(run: Run, answered: Sequence[Answered]) -> tuple[list[Answered], list[Answered]]:
    """The first questions about some pictures drawn by lot; and of some with mistakes those answered wrong."""
    lot = random.Random(derive(run.config.train.seed, "report"))
    by_picture = [list(asked) for _, asked in groupby(answered, key=lambda each: each.picture)]
    sample = lot.sample(by_picture, min(SHOWN, len(by_picture)))
    wrong = [bad for asked in by_picture if (bad := [each for each in asked if not each.right])]
    mistakes = lot.sample(wrong, min(SHOWN, len(wrong)))
    return [each for asked in sample for each in asked[:ASKED]], [each for asked in mistakes for each in asked[:ASKED]]


def _cards(answered: Sequence[Answered]) -> list[tuple[str, Picture, list[Answered]]]:
    grouped = groupby(answered, key=lambda each: each.picture)
    return [(_thumbnail(picture), picture, list(asked)) for picture, asked in grouped]


def _thumbnail(picture: Picture) -> str:
    image = open_picture(picture.path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """A picture as an address that a page needs no other file for."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
