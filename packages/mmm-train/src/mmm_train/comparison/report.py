"""The report of a comparison: the plot, and one HTML page that needs no other file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mmm_block.files import write_whole
from mmm_block.origins import origin
from mmm_train.comparison.summary import COLUMNS, Column, Comparison, Row
from mmm_train.report import COLOURS, LABELS, data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "images_per_second": "images a second in training",
    "ms_per_answer": "milliseconds an answer",
}


def write_report(comparison: Comparison) -> None:
    """Write compare.png and compare.html into the comparison's folder.

    Args:
        comparison: The result.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = comparison.plan.folder
    plot = draw(comparison)
    write_whole(folder / "compare.png", plot)
    environment = Environment(
        loader=PackageLoader("mmm_train"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("compare.html").render(
        comparison=comparison,
        plan=comparison.plan,
        common=comparison.plan.common,
        machines=_machines(comparison),
        columns=COLUMNS,
        origin=origin,
        plot=data_uri(plot),
    )
    write_whole(folder / "compare.html", page)


def draw(comparison: Comparison) -> bytes:
    """Draw each method's accuracy on open questions, beside its speeds in training and in answering.

    Args:
        comparison: The result. Where its data has no open questions, the accuracy is that on all.
    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    blind, *methods = comparison.rows
    accuracy = "open" if blind.values["open"] else "all"
    rows = [row for row in reversed(methods) if row.values[accuracy]]  # the first at the top
    figure = Figure(figsize=(11, 1.4 + 0.32 * max(len(rows), 2)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    left, *others = figure.subplots(1, 1 + len(PANELS), sharey=True, width_ratios=[2, 1, 1])
    _draw_points(left, rows, accuracy, COLOURS[accuracy])
    base = blind.values[accuracy]
    if base:
        left.axvline(100 * base.mean, color=COLOURS["yes_no"], linestyle=":")
    of = "open" if accuracy == "open" else "all"
    left.set_title(f"right answers to {LABELS[of]} questions, % (dotted: question only)", loc="left", fontsize=10)
    left.set_xlim(0, 102)
    for axes, (name, title) in zip(others, PANELS.items(), strict=True):
        _draw_points(axes, rows, name, COLOURS["all"])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlim(left=0)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.set_ylim(-0.6, max(len(rows), 2) - 0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _draw_points(axes: Axes, rows: list[Row], name: str, colour: str) -> None:
    """A point a method at its mean, and a line from the smallest to the largest."""
    column = _column(name)
    for at, row in enumerate(rows):
        if value := row.values[name]:
            low, mean, high = (column.scale * each for each in (value.min, value.mean, value.max))
            axes.plot([low, high], [at, at], color=colour, alpha=0.4, linewidth=5, solid_capstyle="round")
            axes.plot([mean], [at], color=colour, marker="o")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _column(name: str) -> Column:
    return next(column for column in COLUMNS if column.name == name)


def _machines(comparison: Comparison) -> list[str]:
    """What the runs were measured on; speeds of different machines do not compare."""
    found = [member.measured["machine"] for member in comparison.plan.members if member.measured]
    return list(dict.fromkeys(f"{each.get('gpu', each['cpu'])}, {each['threads']} torch threads" for each in found))
