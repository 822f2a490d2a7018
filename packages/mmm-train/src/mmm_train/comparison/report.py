"""The report of a comparison: the plot, and one HTML page that needs no other file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mmm_train.checkpoint import write_whole
from mmm_train.comparison.summary import COLUMNS, Comparison
from mmm_train.report import data_uri

if TYPE_CHECKING:
    pass


def write_report(comparison: Comparison) -> None:
    """Write compare.png and compare.html."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = comparison.plan.folder
    plot = draw(comparison)
    write_whole(folder / "compare.png", plot)
    environment = Environment(
        loader=PackageLoader("mmm_train"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("compare.html").render(comparison=comparison, columns=COLUMNS, plot=data_uri(plot))
    write_whole(folder / "compare.html", page)


def draw(comparison: Comparison) -> bytes:
    """Draw accuracy on open questions and speed.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in comparison.rows[1:] if row.values["all"]]
    figure = Figure(figsize=(10, 1.6 + 0.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for at, row in enumerate(rows):
        for axes, name, scale in ((left, "open", 100), (right, "images_per_second", 1)):
            value = row.values[name]
            if value:
                axes.plot([value.min * scale, value.max * scale], [at, at])
                axes.plot([value.mean * scale], [at], "o")
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()
