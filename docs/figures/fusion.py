"""Draws the figures of the fusion methods: `python docs/figures/fusion.py` writes docs/assets/fusion/<method>.svg.

One plan for all: tokens enter at the bottom, the image on the left and the text on the right, and the sequence for the
backbone leaves at the top. The dashed frame holds what is done once an image, however many texts are about it.
The colours of lines and words are those of the page where the figure is part of one, else those of the reader's system.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "fusion"
WIDTH, PITCH = 520, 66  # of a figure; from row to row
IMAGE, TEXT, BETWEEN = 135, 400, 281  # where the two columns stand, and what is written between them
LEARNED, SIDE = IMAGE - 56, IMAGE + 52  # the left column in two, where learned tokens ask the image
STEP, TOKEN, OP, BOX = 23, 12, 13, 21  # from token to token; half the heights, with the air around them

STYLE = """\
.mmm-fig { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
.mmm-fig { --ink: var(--md-default-fg-color, #22272e); --soft: var(--md-default-fg-color--light, #57606a); }
.mmm-fig { --paper: var(--md-default-bg-color, #ffffff); }
@media (prefers-color-scheme: dark) {
.mmm-fig { --ink: var(--md-default-fg-color, #e6edf3); --soft: var(--md-default-fg-color--light, #9aa4af); }
.mmm-fig { --paper: var(--md-default-bg-color, #0d1117); }
}
.mmm-fig text { fill: var(--ink); font-size: 15px; text-anchor: middle; }
.mmm-fig text.note { fill: var(--soft); font-size: 13px; }
.mmm-fig text.left { text-anchor: start; }
.mmm-fig .box { fill: var(--ink); fill-opacity: .05; stroke: var(--soft); stroke-width: 1.3; }
.mmm-fig .op { fill: var(--paper); stroke: var(--soft); stroke-width: 1.5; }
.mmm-fig .arrow { fill: none; stroke: var(--soft); stroke-width: 1.7; }
.mmm-fig .head { fill: var(--soft); }
.mmm-fig .once { fill: none; stroke: #3b82f6; stroke-width: 1.5; stroke-dasharray: 6 4; }
.mmm-fig .sequence { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.mmm-fig .image { fill: #3b82f6; }
.mmm-fig .words { fill: #e08a1e; }
.mmm-fig .learned { fill: #a855f7; }
"""


@dataclass(frozen=True)
class Step:
    """An operation in a row: one sign stands in a circle, words in a box, a line each, with a note below."""

    row: float
    label: str
    note: str = ""


@dataclass(frozen=True)
class Method:
    """What is in the figure of a method; row 0 is what enters, row `rows` what leaves.

    Attributes:
        name: Of the method, and so of the file.
        title: What a screen reader says first.
        says: What it says then.
        rows: Height.
        image: Steps of the image's column.
        text: Steps of the text's column.
        once: Up to which row things are done once an image.
        links: What goes from the image's column to the text's: from row, to row, label.
        residuals: Lines past steps of the text: from row, to row.
        m: Length of the sequence.
        prefix: Number of tokens drawn before the text.
        grid: Whether the image tokens must be a grid.
        learned: What the learned tokens are called, where there are any.
        side: A step of the image tokens alone, before the learned tokens see them.
    """

    name: str
    title: str
    says: str
    rows: float
    image: tuple[Step, ...]
    text: tuple[Step, ...] = ()
    once: float = 1
    links: tuple[tuple[float, float, str], ...] = ()
    residuals: tuple[tuple[float, float], ...] = ()
    m: str = "l"
    prefix: int = 0
    grid: bool = False
    learned: str = ""
    side: str = ""


WORDS_ALONE = "The sequence has the l words alone."
PASS = "They stand before the words, which pass as they are."

METHODS = (
    Method(
        "add",
        "add: image tokens added to the text",
        "Image tokens pass a linear layer, once an image. Each word gets the mean of its share added: the first of "
        f"all tokens, the next two of the halves, the next four of the quarters, and so on. {WORDS_ALONE}",
        3,
        image=(Step(1, "Linear"), Step(2, "mean of a share", "coarse to fine")),
        text=(Step(2, "+"),),
        links=((2, 2, ""),),
    ),
    Method(
        "mlp",
        "mlp: image tokens through a perceptron, added to the text",
        "As add, but the image tokens pass two linear layers with a GELU between them, once an image. " + WORDS_ALONE,
        3,
        image=(Step(1, "Linear, GELU, Linear"), Step(2, "mean of a share", "coarse to fine")),
        text=(Step(2, "+"),),
        links=((2, 2, ""),),
    ),
    Method(
        "gated",
        "gated: a gate weighs each word against the image",
        "The mean of the image tokens passes a linear layer and a tanh, once an image; so does each word, normed. A "
        f"gate z, made of both, mixes them channel by channel: z of the image, 1 − z of the word. {WORDS_ALONE}",
        4,
        image=(Step(1, "mean"), Step(2, "Linear, tanh")),
        text=(Step(1, "norm"), Step(2, "Linear, tanh"), Step(3, "mixed by a gate z", "z: sigmoid of both")),
        once=2,
        links=((2, 3, ""),),
    ),
    Method(
        "low_rank",
        "low_rank: products of word and image, through a tensor of low rank",
        "The mean of the image tokens, with a 1 appended, passes r linear layers, once an image; so does each word, "
        f"normed. The two are multiplied channel by channel, and the r products are summed. {WORDS_ALONE}",
        4.7,
        image=(Step(1, "mean"), Step(2, "Linear of [mean; 1]", "r times d channels")),
        text=(
            *(Step(1, "norm"), Step(2, "Linear of [word; 1]", "r times d channels")),
            *(Step(2.95, "×"), Step(3.75, "sum over r")),
        ),
        once=2,
        links=((2, 2.95, ""),),
    ),
    Method(
        "matmul",
        "matmul: each word takes the image tokens by their similarity",
        "Two linear layers make keys and values of the image tokens; the product of the two, summed over the image, is "
        "one square matrix, made once an image. Each word is multiplied by it, and the result is added to the word. "
        + WORDS_ALONE,
        3.9,
        image=(Step(1, "Linear", "keys and values"), Step(2, "keysᵀ × values", "a matrix, d × d")),
        text=(Step(2, "word × matrix"), Step(2.9, "+")),
        once=2,
        links=((2, 2, ""),),
        residuals=((1, 2.9),),
    ),
    Method(
        "cross_attention",
        "cross_attention: every word looks at the image",
        "Image tokens become keys and values, once an image. Each word attends to them; the result, times the tanh of "
        "a gate, is added to the word. A feed-forward layer follows in the same way. Both gates are zero at the start. "
        + WORDS_ALONE,
        4.9,
        image=(Step(1.1, "Linear", "keys and values"),),
        text=(
            *(Step(1.1, "attention", "× tanh of a gate"), Step(2, "+")),
            *(Step(3, "feed-forward", "× tanh of a gate"), Step(3.9, "+")),
        ),
        once=1.1,
        links=((1.1, 1.1, "K, V"),),
        residuals=((0.36, 2), (2.4, 3.9)),
    ),
    Method(
        "concat",
        "concat: image tokens before the text",
        f"Image tokens pass a linear layer, once an image. {PASS} The sequence has p + l tokens.",
        2,
        image=(Step(1, "Linear"),),
        m="p + l",
        prefix=6,
    ),
    Method(
        "visual_expert",
        "visual_expert: one attention, two sets of weights",
        "Image tokens pass a linear layer and then a transformer layer with weights of their own, once an image. The "
        "words pass a layer with other weights, whose attention reads the keys and values of the image and of the "
        "words so far. Both stand in the sequence of p + l tokens.",
        4,
        image=(
            *(Step(1, "Linear"), Step(2, "causal attention", "image's Q, K, V, O")),
            Step(3, "feed-forward", "image's weights"),
        ),
        text=(Step(2, "causal attention", "text's Q, K, V, O"), Step(3, "feed-forward", "text's weights")),
        once=3,
        links=((2, 2, "K, V"),),
        m="p + l",
        prefix=6,
    ),
    Method(
        "perceiver",
        "perceiver: learned latents gather the image",
        "Image tokens pass a linear layer. Learned latents attend to them and to themselves, then pass a feed-forward "
        f"layer, several times, once an image. {PASS} The sequence has n + l tokens, whatever p is.",
        3.8,
        image=(Step(2.5, "feed-forward\nattention to both", "depth times"),),
        once=2.5,
        m="n + l",
        prefix=3,
        learned="n latents",
        side="Linear",
    ),
    Method(
        "q_former",
        "q_former: learned queries ask the image",
        "Learned queries attend to themselves, then to the image tokens, then pass a feed-forward layer, several "
        f"times, once an image. A linear layer follows. {PASS} The sequence has n + l tokens, whatever p is.",
        4.7,
        image=(
            Step(2.5, "feed-forward\nattention to the image\nself-attention", "depth times"),
            Step(3.7, "norm, Linear"),
        ),
        once=3.7,
        m="n + l",
        prefix=3,
        learned="n queries",
    ),
    Method(
        "mobilevlm",
        "mobilevlm: convolutions make the image tokens fewer",
        "Image tokens pass two linear layers with a GELU between them; then, as a grid, two blocks of a depthwise "
        "convolution of 3 × 3 and a linear layer, the first with a residual, the second of stride 2, once an image. A "
        f"quarter as many tokens are left. {PASS}",
        4.4,
        image=(
            *(Step(1.4, "Linear, GELU, Linear"), Step(2.4, "convolution block", "3 × 3, residual")),
            Step(3.4, "convolution block", "3 × 3, stride 2"),
        ),
        once=3.4,
        m="p / 4 + l",
        prefix=3,
        grid=True,
    ),
    Method(
        "ldp_v2",
        "ldp_v2: averages make the image tokens fewer",
        "Image tokens pass two linear layers with a GELU between them; then, as a grid, each 2 × 2 of them are "
        "averaged, and a depthwise convolution of 3 × 3 is added, once an image. A quarter as many tokens are left. "
        + PASS,
        4.4,
        image=(
            *(Step(1.4, "Linear, GELU, Linear"), Step(2.4, "mean of 2 × 2")),
            Step(3.4, "3 × 3 convolution", "depthwise, residual"),
        ),
        once=3.4,
        m="p / 4 + l",
        prefix=3,
        grid=True,
    ),
    Method(
        "cross_mamba",
        "cross_mamba: two scans, each read by the C of the other",
        "Image tokens pass a linear layer and a scan, once an image; its last state and the mean of its C stay. The "
        "words pass a scan of their own, whose states are read by the mean C of the image. What the C of each word "
        "reads from the image's last state is added. The sum, gated, passes a linear layer and is added to the words. "
        + WORDS_ALONE,
        5.6,
        image=(
            *(Step(1, "Linear"), Step(2, "scan", "keeps state and mean C")),
            Step(3, "image's last state", "read by the words' C"),
        ),
        text=(
            *(Step(2, "scan", "read by the image's C"), Step(3, "+")),
            *(Step(3.8, "gate, Linear"), Step(4.6, "+")),
        ),
        once=2,
        links=((2, 2, "C"), (3, 3, "")),
        residuals=((1, 4.6),),
    ),
    Method(
        "state",
        "state: the scan of the text begins where that of the image ended",
        "Image tokens pass a linear layer and a Mamba layer, once an image; the layer's final state stays. It is the "
        f"state from which the same layer begins to read the words; the result is added to them. {WORDS_ALONE}",
        3.9,
        image=(Step(1, "Linear"), Step(2, "Mamba layer", "keeps its final state")),
        text=(Step(2, "Mamba layer", "the same weights"), Step(2.9, "+")),
        once=2,
        links=((2, 2, "state"),),
        residuals=((1, 2.9),),
    ),
    Method(
        "film",
        "film: the image scales and shifts the channels of the text",
        "The mean of the image tokens passes a linear layer that gives gamma and beta, once an image. Each word is "
        f"multiplied by one plus gamma, then beta is added. {WORDS_ALONE}",
        4,
        image=(Step(1, "mean"), Step(2, "Linear", "zero at the start")),
        text=(Step(2, "×"), Step(3, "+")),
        once=2,
        links=((2, 2, "1 + γ"), (2, 3, "β")),
    ),
)


class Figure:
    """The drawing of one method."""

    def __init__(self, method: Method) -> None:
        self.method, self.parts = method, list[str]()
        self.height = round(PITCH * method.rows + 108)
        self.half = {0.0: TOKEN, method.rows: 20.0}  # half the height of what stands in a row, of any column
        self._tokens()
        for step in method.image:
            self._step(IMAGE, step, 200 if method.learned and step == method.image[0] else 176)
        self._once()
        for step in method.text:
            self._step(TEXT, step, 176)
        self._arrows()

    def svg(self) -> str:
        """The file."""
        label = f"mmm-fig-{self.method.name}"
        size = f'viewBox="0 0 {WIDTH} {self.height}"'
        lines = (
            f'<svg class="mmm-fig" xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            f'aria-labelledby="{label}-title {label}-text">',
            f'<title id="{label}-title">{self.method.title}</title>',
            f'<desc id="{label}-text">{self.method.says}</desc>',
            f"<style>\n{STYLE}</style>",
            *self.parts,
            "</svg>\n",
        )
        return "\n".join(lines)

    def _y(self, row: float) -> float:
        return self.height - 42 - PITCH * row

    def _tokens(self) -> None:
        """What enters, and what leaves."""
        method, enters, leaves = self.method, self._y(0), self._y(self.method.rows)
        self._row(IMAGE, enters, 6, "image")
        if method.grid:
            self._row(IMAGE, enters - STEP, 6, "image")
        self._row(TEXT, enters, 4, "words")
        self._text(IMAGE, enters + 30, "image tokens v: p × D")
        self._text(TEXT, enters + 30, "text x: l × d")
        if method.learned:
            self._row(LEARNED, self._y(1.2), 3, "learned")
            self._text(LEARNED, self._y(1.2) + 25, method.learned, "note")
        self._row(IMAGE, leaves, method.prefix, "learned" if method.learned else "image")
        self._row(TEXT, leaves, 4, "words")
        if method.links:  # a square in a square: text that holds the image
            self._row(TEXT, leaves, 4, "image", size=8)
        left = IMAGE - STEP * method.prefix / 2 - 12 if method.prefix else TEXT - 2 * STEP - 12
        right = TEXT + 2 * STEP + 12
        self._rect("sequence", left, leaves - 20, right - left, 40, 9)
        self._text((left + right) / 2, leaves - 31, f"to the backbone: m = {method.m}")

    def _row(self, x: float, y: float, count: int, kind: str, size: float = 18) -> None:
        """Tokens around x: squares, or circles where they are learned."""
        radius = size / 2 if kind == "learned" else size / 6
        for i in range(count):
            left = x + STEP * (i - (count - 1) / 2) - size / 2
            self._rect(kind, left, y - size / 2, size, size, radius)

    def _step(self, x: float, step: Step, width: float) -> None:
        y, lines = self._y(step.row), step.label.split("\n")
        if len(step.label) == 1:
            self.half[step.row] = max(OP, self.half.get(step.row, 0))
            self.parts.append(f'<circle class="op" cx="{x:g}" cy="{y:g}" r="{OP}"/>')
            self._text(x, y + 5.5, step.label)
            return
        half = self.half[step.row] = max(BOX, 10 * len(lines) + 9 * bool(step.note) + 2)
        self._rect("box", x - width / 2, y - half, width, 2 * half, 7)
        for i, line in enumerate(lines):
            self._text(x, y + 5 - 8 * bool(step.note) + 20 * i - 10 * (len(lines) - 1), line)
        if step.note:
            self._text(x, y + half - 7, step.note, "note")

    def _once(self) -> None:
        top = self._y(self.method.once) - self.half[self.method.once] - 11
        bottom = self._y(0) - TOKEN - STEP * self.method.grid - 10
        self._rect("once", IMAGE - 116, top, 232, bottom - top, 10)
        self._text(IMAGE - 109, bottom - 7, "once an image", "note left")

    def _arrows(self) -> None:
        method, signs = self.method, {step.row for step in self.method.text if len(step.label) == 1}
        above = [step.row for step in method.image] + [method.rows] * bool(method.prefix)
        if method.learned:
            if method.side:
                self._step(SIDE, Step(1.2, method.side), 84)
            self._up(SIDE, [0, 1.2, above[0]] if method.side else [0, above[0]])
            self._arrow((LEARNED, self._y(1.2) - TOKEN), (LEARNED, self._y(above[0]) + self.half[above[0]]))
        self._up(IMAGE, above if method.learned else [0, *above])
        self._up(TEXT, [0, *(step.row for step in method.text), method.rows], signs)
        for low, high, label in method.links:
            y, end = self._y(high), TEXT - (OP if high in signs else 88)
            start = (IMAGE + 88, y) if low == high else (IMAGE, self._y(low) - BOX)
            self._arrow(start, *([] if low == high else [(IMAGE, y)]), (end, y))
            self._text(BETWEEN, y - 9, label, "note")
        for low, high in method.residuals:
            y, top, side = self._y(low), self._y(high), TEXT + 102
            self._arrow((TEXT, y), (side, y), (side, top), (TEXT + OP, top))

    def _up(self, x: float, rows: list[float], signs: set[float] | None = None) -> None:
        """Arrows from row to row."""
        half = self.half | dict.fromkeys(signs or (), OP)
        lift = STEP * (self.method.grid and x == IMAGE)
        for low, high in pairwise(rows):
            self._arrow((x, self._y(low) - half[low] - lift * (low == 0)), (x, self._y(high) + half[high]))

    def _arrow(self, *points: tuple[float, float]) -> None:
        """A line through (x, y) points, with a head just before the last."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        x, y = x - 2 * dx, y - 2 * dy
        line = " L".join(f"{px:g} {py:g}" for px, py in (*points[:-1], (x - 7 * dx, y - 7 * dy)))
        wings = " L".join(f"{x - 9 * dx + side * dy:g} {y - 9 * dy + side * dx:g}" for side in (-5, 5))
        self.parts.append(f'<path class="arrow" d="M{line}"/><path class="head" d="M{x:g} {y:g} L{wings} z"/>')

    def _text(self, x: float, y: float, text: str, kind: str = "") -> None:
        if text:
            look = f' class="{kind}"' if kind else ""
            self.parts.append(f'<text{look} x="{x:g}" y="{y:g}">{text}</text>')

    def _rect(self, kind: str, x: float, y: float, width: float, height: float, radius: float) -> None:
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self.parts.append(f'<rect class="{kind}" {size}/>')


def files() -> dict[str, str]:
    """Every figure by the name of its file."""
    return {f"{method.name}.svg": Figure(method).svg() for method in METHODS}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
