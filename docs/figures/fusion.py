"""Draws the figures of the fusion methods: `python docs/figures/fusion.py` writes docs/assets/fusion/<method>.svg.

One plan for all: tokens enter at the bottom, the image on the left and the text on the right, and the sequence for the
backbone leaves at the top. The dashed frame holds what is done once an image, however many texts are about it.
The colours of text and paper are those of the page where the figure is part of one, else those of the reader's system.
"""

from __future__ import annotations

from itertools import pairwise
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
    """One figure, `rows` high: row 0 is what enters, row `rows` what leaves."""

    def __init__(self, name: str, rows: float, title: str, description: str) -> None:
        self.name, self.rows, self.parts = name, rows, list[str]()
        self.title, self.description = title, description
        self.height = PITCH * rows + 108
        self.half: dict[tuple[float, float], float] = {}  # of the height of what stands at (x, row)

    def y(self, row: float) -> float:
        return self.height - 42 - PITCH * row

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'.replace(' class=""', ""))

    def tokens(self, x: float, row: float, count: int, kind: Kind) -> None:
        """Tokens around x: squares; circles where they are learned; a square in a square is text that holds the image."""
        self.half[x, row] = 12
        for i in range(count):
            left, top = x + STEP * (i - (count - 1) / 2) - TOKEN / 2, self.y(row) - TOKEN / 2
            self._rect("text" if kind == "both" else kind, left, top, TOKEN, TOKEN, 9 if kind == "learned" else 3)
            if kind == "both":
                self._rect("image", left + 5, top + 5, TOKEN - 10, TOKEN - 10, 1.5)

    def box(self, x: float, row: float, *lines: str, note: str = "", width: float = 176) -> None:
        """An operation, or several in one box from top to bottom; then what it needs to know."""
        half = max(21, 10 * len(lines) + 9 * bool(note) + 2)
        self.half[x, row] = half
        self._rect("box", x - width / 2, self.y(row) - half, width, 2 * half, 7)
        for i, line in enumerate(lines):
            self.text(x, self.y(row) + 5 - 8 * bool(note) + 20 * i - 10 * (len(lines) - 1), line)
        if note:
            self.text(x, self.y(row) + half - 7, note, "note")

    def op(self, x: float, row: float, sign: str) -> None:
        """A sign in a circle: what is done channel by channel."""
        self.half[x, row] = 13
        self.parts.append(f'<circle class="op" cx="{x:g}" cy="{self.y(row):g}" r="13"/>')
        self.text(x, self.y(row) + 5.5, sign)

    def arrow(self, *points: Point) -> None:
        """A line through (x, y) points, with a head just before the last."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        x, y = x - 2 * dx, y - 2 * dy
        line = " L".join(f"{px:g} {py:g}" for px, py in (*points[:-1], (x - 7 * dx, y - 7 * dy)))
        self.parts.append(f'<path class="arrow" d="M{line}"/>')
        wings = " L".join(f"{x - 9 * dx + side * dy:g} {y - 9 * dy + side * dx:g}" for side in (-5, 5))
        self.parts.append(f'<path class="head" d="M{x:g} {y:g} L{wings} z"/>')

    def up(self, x: float, *rows: float) -> None:
        """Arrows from row to row."""
        for low, high in pairwise(rows):
            self.arrow((x, self.y(low) - self.half.get((x, low), 12)), (x, self.y(high) + self.half.get((x, high), 21)))

    def across(self, row: float, label: str = "", *, start: float = IMAGE + 88) -> None:
        """An arrow from the image's column to what stands in the text's."""
        end = TEXT - (13 if self.half.get((TEXT, row)) == 13 else 88)
        self.arrow((start, self.y(row)), (end, self.y(row)))
        self.text(BETWEEN, self.y(row) - 9, label, "note")

    def residual(self, low: float, high: float) -> None:
        """A line past what stands between two rows of the text's column."""
        self.arrow(
            (TEXT, self.y(low)), (TEXT + 102, self.y(low)), (TEXT + 102, self.y(high)), (TEXT + 13, self.y(high))
        )

    def once(self, top: float) -> None:
        """The frame around all that is done once an image, up to what stands in a row."""
        high, low = self.y(top) - self.half[IMAGE, top] - 11, self.y(0) - 22
        self._rect("once", IMAGE - 116, high, 232, low - high, 10)
        self.text(IMAGE - 109, low - 7, "once an image", "note left")

    def enter(self, image: int = 6, text: int = 4) -> None:
        """What enters: image tokens and text."""
        self.tokens(IMAGE, 0, image, "image")
        self.tokens(TEXT, 0, text, "text")
        self.text(IMAGE, self.y(0) + 30, "image tokens v: p × D")
        self.text(TEXT, self.y(0) + 30, "text x: l × d")

    def leave(self, m: str, prefix: int = 0, kind: Kind = "image", *, text: Kind = "both", count: int = 4) -> None:
        """What leaves: a prefix of so many tokens, if any, then the text."""
        if prefix:
            self.tokens(IMAGE, self.rows, prefix, kind)
            self.half[IMAGE, self.rows] = 20
        self.tokens(TEXT, self.rows, count, text)
        self.half[TEXT, self.rows] = 20
        left = IMAGE - STEP * prefix / 2 - 12 if prefix else TEXT - STEP * count / 2 - 12
        right = TEXT + STEP * count / 2 + 12
        self._rect("sequence", left, self.y(self.rows) - 20, right - left, 40, 9)
        self.text((left + right) / 2, self.y(self.rows) - 31, f"to the backbone: {m}")

    def svg(self) -> str:
        """The file."""
        label = f"mmm-fig-{self.name}"
        return "\n".join(
            (
                f'<svg class="mmm-fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" '
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
    figure = Figure(name, 3, title, description)
    figure.enter()
    figure.box(IMAGE, 1, projector)
    figure.box(IMAGE, 2, "mean of a share", note="p tokens in l shares")
    figure.op(TEXT, 2, "+")
    figure.leave("m = l")
    figure.once(1)
    figure.up(IMAGE, 0, 1, 2)
    figure.across(2)
    figure.up(TEXT, 0, 2, 3)
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
        2,
        "concat: image tokens before the text",
        "Image tokens pass a linear layer, once an image, and stand before the words, which pass as they are. The "
        "sequence has p + l tokens.",
    )
    figure.enter()
    figure.box(IMAGE, 1, "Linear")
    figure.leave("m = p + l", 6, text="text")
    figure.once(1)
    figure.up(IMAGE, 0, 1, 2)
    figure.up(TEXT, 0, 2)
    return figure


def visual_expert() -> Figure:
    figure = Figure(
        "visual_expert",
        4,
        "visual_expert: one attention, two sets of weights",
        "Image tokens pass a linear layer and then a transformer layer with weights of their own, once an image. The "
        "words pass a layer with other weights, whose attention reads the keys and values of the image and of the "
        "words so far. Both stand in the sequence of p + l tokens.",
    )
    figure.enter()
    figure.box(IMAGE, 1, "Linear")
    for x, whose in ((IMAGE, "image's"), (TEXT, "text's")):
        figure.box(x, 2, "causal attention", note=f"{whose} Q, K, V, O")
        figure.box(x, 3, "feed-forward", note=f"{whose} weights")
    figure.leave("m = p + l", 6)
    figure.once(3)
    figure.up(IMAGE, 0, 1, 2, 3, 4)
    figure.up(TEXT, 0, 2, 3, 4)
    figure.across(2, "K, V")
    return figure


def cross_attention() -> Figure:
    figure = Figure(
        "cross_attention",
        4.9,
        "cross_attention: every word looks at the image",
        "Image tokens become keys and values, once an image. Each word attends to them; the result, times the tanh of a "
        "gate, is added to the word. A feed-forward layer follows in the same way. Both gates are zero at the start. "
        "The sequence has the l words alone.",
    )
    figure.enter()
    figure.box(IMAGE, 1.1, "Linear", note="keys and values")
    figure.box(TEXT, 1.1, "attention", note="× tanh of a gate")
    figure.op(TEXT, 2, "+")
    figure.box(TEXT, 3, "feed-forward", note="× tanh of a gate")
    figure.op(TEXT, 3.9, "+")
    figure.leave("m = l")
    figure.once(1.1)
    figure.up(IMAGE, 0, 1.1)
    figure.up(TEXT, 0, 1.1, 2, 3, 3.9, 4.9)
    figure.across(1.1, "K, V")
    figure.residual(0.36, 2)
    figure.residual(2.4, 3.9)
    return figure


def learned(name: str, tokens: str, side: str, layer: tuple[str, ...], last: str, title: str, what: str) -> Figure:
    """`perceiver` and `q_former`: learned tokens that ask the image, then stand before the text."""
    rows = 4.7 if last else 3.8
    figure = Figure(name, rows, title, f"{what} The sequence has n learned tokens and l words, whatever p is.")
    figure.enter()
    figure.tokens(IMAGE - 56, 1.2, 3, "learned")
    figure.text(IMAGE - 56, figure.y(1.2) + 25, tokens, "note")
    if side:
        figure.box(IMAGE + 52, 1.2, side, width=84)
    figure.box(IMAGE, 2.5, *layer, note="depth times", width=200)
    if last:
        figure.box(IMAGE, 3.7, last)
    figure.leave("m = n + l", 3, "learned", text="text")
    figure.once(3.7 if last else 2.5)
    half = figure.half[IMAGE, 2.5]
    figure.half |= {(IMAGE - 56, 2.5): half, (IMAGE + 52, 2.5): half}
    figure.up(IMAGE - 56, 1.2, 2.5)
    figure.up(IMAGE + 52, *([0, 1.2, 2.5] if side else [0, 2.5]))
    figure.up(IMAGE, *([2.5, 3.7, rows] if last else [2.5, rows]))
    figure.up(TEXT, 0, rows)
    return figure


def perceiver() -> Figure:
    return learned(
        "perceiver",
        "n latents",
        "Linear",
        ("feed-forward", "attention to both"),
        "",
        "perceiver: learned latents gather the image",
        "Image tokens pass a linear layer. Learned latents attend to them and to themselves, then pass a feed-forward "
        "layer, several times, once an image. They stand before the words, which pass as they are.",
    )


def q_former() -> Figure:
    return learned(
        "q_former",
        "n queries",
        "",
        ("feed-forward", "attention to the image", "self-attention"),
        "Linear",
        "q_former: learned queries ask the image",
        "Learned queries attend to themselves, then to the image tokens, then pass a feed-forward layer, several times, "
        "once an image. A linear layer follows. They stand before the words, which pass as they are.",
    )


def cross_mamba() -> Figure:
    figure = Figure(
        "cross_mamba",
        5.6,
        "cross_mamba: two scans, each read by the C of the other",
        "Image tokens pass a linear layer and a scan, once an image; its last state and the mean of its C stay. The "
        "words pass a scan of their own, whose states are read by the mean C of the image. What the C of each word "
        "reads from the image's last state is added. The sum, gated, passes a linear layer and is added to the words. "
        "The sequence has the l words alone.",
    )
    figure.enter()
    figure.box(IMAGE, 1, "Linear")
    figure.box(IMAGE, 2, "scan", note="keeps state and mean C")
    figure.box(IMAGE, 3, "image's last state", note="read by the words' C")
    figure.box(TEXT, 2, "scan", note="read by the image's C")
    figure.op(TEXT, 3, "+")
    figure.box(TEXT, 3.8, "gate, Linear")
    figure.op(TEXT, 4.6, "+")
    figure.leave("m = l")
    figure.once(2)
    figure.up(IMAGE, 0, 1, 2, 3)
    figure.across(2, "C")
    figure.across(3)
    figure.up(TEXT, 0, 2, 3, 3.8, 4.6, 5.6)
    figure.residual(1, 4.6)
    return figure


def state() -> Figure:
    figure = Figure(
        "state",
        3.9,
        "state: the scan of the text begins where that of the image ended",
        "Image tokens pass a linear layer and a Mamba layer, once an image; the layer's final state stays. It is the "
        "state from which the same layer begins to read the words; the result is added to them. The sequence has the l "
        "words alone.",
    )
    figure.enter()
    figure.box(IMAGE, 1, "Linear")
    figure.box(IMAGE, 2, "Mamba layer", note="keeps its final state")
    figure.box(TEXT, 2, "Mamba layer", note="the same weights")
    figure.op(TEXT, 2.9, "+")
    figure.leave("m = l")
    figure.once(2)
    figure.up(IMAGE, 0, 1, 2)
    figure.across(2, "state")
    figure.up(TEXT, 0, 2, 2.9, 3.9)
    figure.residual(1, 2.9)
    return figure


def film() -> Figure:
    figure = Figure(
        "film",
        4,
        "film: the image scales and shifts the channels of the text",
        "The mean of the image tokens passes a linear layer that gives gamma and beta, once an image. Each word is "
        "multiplied by one plus gamma, then beta is added. The sequence has the l words alone.",
    )
    figure.enter()
    figure.box(IMAGE, 1, "mean")
    figure.box(IMAGE, 2, "Linear", note="zero at the start")
    figure.op(TEXT, 2, "×")
    figure.op(TEXT, 3, "+")
    figure.leave("m = l")
    figure.once(2)
    figure.up(IMAGE, 0, 1, 2)
    figure.across(2, "1 + γ")
    figure.arrow((IMAGE, figure.y(2) - 21), (IMAGE, figure.y(3)), (TEXT - 13, figure.y(3)))
    figure.text(BETWEEN, figure.y(3) - 9, "β", "note")
    figure.up(TEXT, 0, 2, 3, 4)
    return figure


FIGURES = (add, mlp, concat, visual_expert, cross_attention, perceiver, q_former, cross_mamba, state, film)


def drawn() -> dict[str, str]:
    """Every figure by the name of its file."""
    return {f"{figure.name}.svg": figure.svg() for figure in (draw() for draw in FIGURES)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in drawn().items():
        (FOLDER / name).write_text(text)
