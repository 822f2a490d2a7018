"""Draws the figures of the fusion methods: `python docs/figures/fusion.py` writes docs/assets/fusion/<method>.svg.

One plan for all: tokens enter at the bottom, the image on the left and the text on the right, and the sequence for the
backbone leaves at the top. The dashed frame holds what is done once an image, however many texts are about it.
The colours of text and paper are those of the page where the figure is part of one, else those of the reader's system.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parents[1] / "assets" / "fusion"
WIDTH, PITCH = 520, 66  # of the figure; from row to row
IMAGE, TEXT, BETWEEN = 135, 400, 281  # where the columns of image and text stand, and what is written between them
TOKEN, STEP = 18, 23

STYLE = """\
.mmm-fig { --ink: var(--md-default-fg-color, #22272e); --soft: var(--md-default-fg-color--light, #57606a);
  --paper: var(--md-default-bg-color, #ffffff); font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
@media (prefers-color-scheme: dark) { .mmm-fig { --ink: var(--md-default-fg-color, #e6edf3);
  --soft: var(--md-default-fg-color--light, #9aa4af); --paper: var(--md-default-bg-color, #0d1117); } }
.mmm-fig text { fill: var(--ink); font-size: 15px; text-anchor: middle; }
.mmm-fig .note { fill: var(--soft); font-size: 13px; }
.mmm-fig .left { text-anchor: start; }
.mmm-fig .box { fill: var(--ink); fill-opacity: .05; stroke: var(--soft); stroke-width: 1.3; }
.mmm-fig .op { fill: var(--paper); stroke: var(--soft); stroke-width: 1.5; }
.mmm-fig .arrow { fill: none; stroke: var(--soft); stroke-width: 1.7; }
.mmm-fig .head { fill: var(--soft); }
.mmm-fig .once { fill: none; stroke: #3b82f6; stroke-width: 1.5; stroke-dasharray: 6 4; }
.mmm-fig .sequence { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.mmm-fig .image { fill: #3b82f6; }
.mmm-fig .text { fill: #e08a1e; }
.mmm-fig .learned { fill: #a855f7; }
"""

Kind = Literal["image", "text", "learned", "both"]
Point = tuple[float, float]


class Figure:
    """One figure, of `rows` rows of operations between the tokens that enter and the sequence that leaves."""

    def __init__(self, name: str, rows: int, title: str, description: str) -> None:
        self.name, self.rows, self.parts = name, rows, list[str]()
        self.title, self.description = title, description
        self.height = PITCH * (rows + 1) + 116

    def y(self, row: float) -> float:
        """Row 0 is what enters, row `rows + 1` what leaves."""
        return self.height - 42 - PITCH * row

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'.replace(' class=""', ""))

    def tokens(self, x: float, y: float, count: int, kind: Kind) -> None:
        """A row of tokens around x: squares; circles where they are learned; text that holds the image is framed."""
        for i in range(count):
            left, top = x + STEP * (i - (count - 1) / 2) - TOKEN / 2, y - TOKEN / 2
            radius = TOKEN / 2 if kind == "learned" else 3
            look = "text" if kind == "both" else kind
            self._rect(look, left, top, TOKEN, TOKEN, radius)
            if kind == "both":
                self._rect("image", left + 5, top + 5, TOKEN - 10, TOKEN - 10, 1.5)

    def box(self, x: float, row: float, label: str, note: str = "", *, width: float = 176) -> None:
        """An operation with one line of text, or two."""
        y = self.y(row)
        self._rect("box", x - width / 2, y - 21, width, 42, 7)
        self.text(x, y + (5 if not note else -2), label)
        if note:
            self.text(x, y + 14, note, "note")

    def op(self, x: float, row: float, sign: str) -> None:
        """A sign in a circle: what is done channel by channel."""
        self.parts.append(f'<circle class="op" cx="{x:g}" cy="{self.y(row):g}" r="13"/>')
        self.text(x, self.y(row) + 5.5, sign)

    def arrow(self, *points: Point, gap: float = 2) -> None:
        """A line through (x, y) points, with a head at the last, `gap` before it."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        x, y = x - gap * dx, y - gap * dy
        line = " L".join(f"{px:g} {py:g}" for px, py in (*points[:-1], (x - 7 * dx, y - 7 * dy)))
        self.parts.append(f'<path class="arrow" d="M{line}"/>')
        wings = " L".join(f"{x - 9 * dx + side * dy:g} {y - 9 * dy + side * dx:g}" for side in (-5, 5))
        self.parts.append(f'<path class="head" d="M{x:g} {y:g} L{wings} z"/>')

    def up(self, x: float, low: float, high: float, *, start: float = 21, end: float = 21) -> None:
        """An arrow from one row to a higher one; `start` and `end` are half the heights of what stands there."""
        self.arrow((x, self.y(low) - start), (x, self.y(high) + end))

    def across(self, row: float, label: str = "", *, start: float = IMAGE + 88, end: float = TEXT - 88) -> None:
        """An arrow from the image's column to the text's."""
        self.arrow((start, self.y(row)), (end, self.y(row)))
        if label:
            self.text(BETWEEN, self.y(row) - 9, label, "note")

    def once(self, top: float) -> None:
        """The frame around all that is done once an image, up to a row."""
        high, low = self.y(top) - 32, self.y(0) - 22
        self._rect("once", IMAGE - 116, high, 232, low - high, 10)
        self.text(IMAGE - 109, low - 7, "once an image", "note left")

    def enter(self, image: int = 6, text: int = 4) -> None:
        """What enters: image tokens and text."""
        y = self.y(0)
        self.tokens(IMAGE, y, image, "image")
        self.tokens(TEXT, y, text, "text")
        self.text(IMAGE, y + 30, "image tokens v: p × D")
        self.text(TEXT, y + 30, "text x: l × d")

    def leave(self, m: str, prefix: int = 0, kind: Kind = "image", *, text: Kind = "both", count: int = 4) -> None:
        """What leaves: a prefix of so many tokens, if any, then the text."""
        y = self.y(self.rows + 1)
        if prefix:
            self.tokens(IMAGE, y, prefix, kind)
        self.tokens(TEXT, y, count, text)
        left = IMAGE - STEP * prefix / 2 - 12 if prefix else TEXT - STEP * count / 2 - 12
        right = TEXT + STEP * count / 2 + 12
        self._rect("sequence", left, y - 20, right - left, 40, 9)
        self.text((left + right) / 2, y - 31, f"to the backbone: {m}")

    def svg(self) -> str:
        """The file."""
        label = f"mmm-fig-{self.name}"
        return "\n".join(
            (
                f'<svg class="mmm-fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
                f'role="img" aria-labelledby="{label}-title {label}-text">',
                f'<title id="{label}-title">{self.title}</title>',
                f'<desc id="{label}-text">{self.description}</desc>',
                f"<style>\n{STYLE}</style>",
                *self.parts,
                "</svg>\n",
            )
        )

    def _rect(self, kind: str, x: float, y: float, width: float, height: float, radius: float) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )


def added(name: str, projector: str, title: str, description: str) -> Figure:
    """`add` and `mlp`: they differ in the projector."""
    figure = Figure(name, 2, title, description)
    figure.enter()
    figure.once(1)
    figure.box(IMAGE, 1, projector)
    figure.up(IMAGE, 0, 1, start=12)
    figure.box(IMAGE, 2, "mean of a share", "p tokens in l shares")
    figure.up(IMAGE, 1, 2)
    figure.across(2, end=TEXT - 13)
    figure.op(TEXT, 2, "+")
    figure.up(TEXT, 0, 2, start=12, end=13)
    figure.up(TEXT, 2, 3, start=13, end=20)
    figure.leave("m = l")
    return figure


def add() -> Figure:
    return added(
        "add",
        "Linear",
        "add: image tokens added to the text",
        "Image tokens pass a linear layer, once an image. For each text they are averaged in as many shares as there "
        "are words, and each word gets its share added. The sequence has the l words alone.",
    )


def mlp() -> Figure:
    return added(
        "mlp",
        "Linear, GELU, Linear",
        "mlp: image tokens through a perceptron, added to the text",
        "As add, but the image tokens pass two linear layers with a GELU between them, once an image. The sequence has "
        "the l words alone.",
    )


def concat() -> Figure:
    figure = Figure(
        "concat",
        1,
        "concat: image tokens before the text",
        "Image tokens pass a linear layer, once an image, and stand before the words, which pass as they are. The "
        "sequence has p + l tokens.",
    )
    figure.enter()
    figure.once(1)
    figure.box(IMAGE, 1, "Linear")
    figure.up(IMAGE, 0, 1, start=12)
    figure.up(IMAGE, 1, 2, end=20)
    figure.up(TEXT, 0, 2, start=12, end=20)
    figure.leave("m = p + l", 6, text="text")
    return figure


def visual_expert() -> Figure:
    figure = Figure(
        "visual_expert",
        3,
        "visual_expert: one attention, two sets of weights",
        "Image tokens pass a linear layer and then a transformer layer with weights of their own, once an image. The "
        "words pass a layer with other weights, whose attention reads the keys and values of the image and of the "
        "words so far. Both stand in the sequence of p + l tokens.",
    )
    figure.enter()
    figure.once(3)
    figure.box(IMAGE, 1, "Linear")
    figure.up(IMAGE, 0, 1, start=12)
    for x, whose in ((IMAGE, "image's"), (TEXT, "text's")):
        figure.box(x, 2, "causal attention", f"{whose} Q, K, V, O")
        figure.box(x, 3, "feed-forward", f"{whose} weights")
        figure.up(x, 2, 3)
        figure.up(x, 3, 4, end=20)
    figure.up(IMAGE, 1, 2)
    figure.up(TEXT, 0, 2, start=12)
    figure.across(2, "K, V")
    figure.leave("m = p + l", 6)
    return figure


def film() -> Figure:
    figure = Figure(
        "film",
        3,
        "film: the image scales and shifts the channels of the text",
        "The mean of the image tokens passes a linear layer that gives gamma and beta, once an image. Each word is "
        "multiplied by one plus gamma, then beta is added. The sequence has the l words alone.",
    )
    figure.enter()
    figure.once(2)
    figure.box(IMAGE, 1, "mean")
    figure.up(IMAGE, 0, 1, start=12)
    figure.box(IMAGE, 2, "Linear", "zero at the start")
    figure.up(IMAGE, 1, 2)
    figure.across(2, "1 + γ", end=TEXT - 13)
    figure.op(TEXT, 2, "×")
    figure.up(TEXT, 0, 2, start=12, end=13)
    figure.arrow((IMAGE, figure.y(2) - 21), (IMAGE, figure.y(3)), (TEXT - 13, figure.y(3)))
    figure.text(BETWEEN, figure.y(3) - 9, "β", "note")
    figure.op(TEXT, 3, "+")
    figure.up(TEXT, 2, 3, start=13, end=13)
    figure.up(TEXT, 3, 4, start=13, end=20)
    figure.leave("m = l")
    return figure


FIGURES = (add, mlp, concat, visual_expert, film)


def drawn() -> dict[str, str]:
    """Every figure by the name of its file."""
    return {f"{figure.name}.svg": figure.svg() for figure in (draw() for draw in FIGURES)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in drawn().items():
        (FOLDER / name).write_text(text)
