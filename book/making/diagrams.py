"""Draws the diagrams of the book as SVG, for light and dark pages. The README contains one of them.

Run: PYTHONPATH=book python -m making.diagrams    to draw that of the README again
"""

from __future__ import annotations

from dataclasses import dataclass

from making.results import BOOK
from ssetools.plots import ACCENT, AFTER

_FONT = "font-family='DejaVu Sans, Verdana, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Paper:
    """Colours of a page: text, frozen weights, the inside of boxes, and the background (None: transparent)."""

    ink: str
    frozen: str
    inside: str
    background: str | None = None


PAPERS = {
    "light": Paper("#39434d", "#c3cbd3", "#f4f7f9"),
    "dark": Paper("#d3dae1", "#55606b", "#1d252d"),
    "readme": Paper("#39434d", "#c3cbd3", "#f4f7f9", "#ffffff"),
}


def _text(x, y, words, paper, size=15, colour=None, anchor="middle", weight="normal"):
    style = f"{_FONT} font-size='{size}' fill='{colour or paper.ink}' text-anchor='{anchor}' font-weight='{weight}'"
    return f"<text x='{x}' y='{y}' {style}>{words}</text>"


def _box(x, y, width, height, colour, stroke="none"):
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='4' fill='{colour}' stroke='{stroke}'/>"


def _arrow(x1, y1, x2, y2, colour):
    """Draws an arrow to the right: straight, or with a bend between two heights."""
    middle = (x1 + x2) / 2
    path = f"M{x1} {y1} H{middle} V{y2} H{x2 - 7}" if y1 != y2 else f"M{x1} {y1} H{x2 - 7}"
    head = f"<path d='M{x2 - 9} {y2 - 5} L{x2} {y2} L{x2 - 9} {y2 + 5} Z' fill='{colour}'/>"
    return f"<path d='{path}' stroke='{colour}' stroke-width='2' fill='none'/>{head}"


def _turn(x1, y1, x2, y2, colour):
    """Draws an arrow down from one box, across, and down into another."""
    middle = (y1 + y2) / 2
    head = f"<path d='M{x2 - 5} {y2 - 9} L{x2} {y2} L{x2 + 5} {y2 - 9} Z' fill='{colour}'/>"
    return f"<path d='M{x1} {y1} V{middle} H{x2} V{y2 - 7}' stroke='{colour}' stroke-width='2' fill='none'/>{head}"


def _svg(width, height, title, paper, parts):
    background = [_box(0, 0, width, height, paper.background)] if paper.background else []
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img'><title>{title}</title>"
    return "\n".join([head, *background, *parts, "</svg>", ""])


def pipeline(paper: Paper) -> str:
    """Draws the steps from text to evaluation as five boxes in two rows."""
    steps = [
        ("text", "any language", "load_texts", 0, 0),
        ("counts", "which neurons fire", "profile_languages", 1, 0),
        ("neurons", "which are its own", "select_specific", 2, 0),
        ("delta", "train only those", "finetune", 0, 1),
        ("numbers", "gained and kept", "score_languages", 1, 1),
    ]
    parts = []
    for name, about, function, column, row in steps:
        x, y = 2 + 200 * column, 2 + 160 * row
        colour = ACCENT if name == "delta" else AFTER
        parts += [_box(x, y, 156, 84, paper.inside, colour)]
        parts += [_text(x + 78, y + 36, name, paper, 20, colour, weight="bold")]
        parts += [_text(x + 78, y + 63, about, paper, 14), _text(x + 78, y + 106, function, paper, 14)]
        if column:
            parts.append(_arrow(x - 42, y + 42, x - 3, y + 42, paper.ink))
    parts.append(_turn(480, 116, 80, 159, paper.ink))
    return _svg(562, 276, "Text, activation counts, neuron sets, a small delta, numbers", paper, parts)


def subnetwork(paper: Paper) -> str:
    """Draws the three projections with the rows and columns of two neurons coloured."""
    parts = []
    for x, name in ((0, "gate"), (180, "up")):
        parts += [_text(x + 70, 18, f"{name} projection", paper, 15, weight="bold")]
        parts += [_box(x, 34 + 16 * row, 140, 12, ACCENT if row in (2, 7) else paper.frozen) for row in range(11)]
        parts.append(_text(x + 70, 232, "rows: neurons", paper, 15))
    parts.append(_text(456, 18, "down projection", paper, 15, weight="bold"))
    for column in range(11):
        parts.append(_box(370 + 16 * column, 50, 12, 140, ACCENT if column in (2, 7) else paper.frozen))
    parts.append(_text(456, 232, "columns: neurons", paper, 15))
    parts += [_box(150, 262, 16, 14, ACCENT), _text(174, 275, "trained", paper, 15, anchor="start")]
    parts += [_box(290, 262, 16, 14, paper.frozen), _text(314, 275, "frozen, 8-bit", paper, 15, anchor="start")]
    return _svg(562, 288, "The slices of two neurons in gate, up and down projection", paper, parts)


def beside(paper: Paper) -> str:
    """Draws one projection in a forward pass: the frozen 8-bit product, and the delta added to some of its outputs."""
    parts = [_text(14, 100, "x", paper, 22, weight="bold")]
    parts += [_box(84, 34, 180, 60, paper.frozen), _text(174, 69, "8-bit weight, all rows", paper, 15)]
    parts += [_box(84, 120, 180, 44, paper.inside, ACCENT), _text(174, 147, "delta, its rows", paper, 15)]
    parts += [_arrow(30, 93, 81, 64, paper.ink), _arrow(30, 93, 81, 142, ACCENT)]
    for row in range(12):
        parts.append(_box(446, 14 + 14 * row, 46, 11, ACCENT if row in (2, 5, 9) else paper.frozen))
    parts += [_arrow(268, 64, 441, 64, paper.ink), _text(352, 54, "all outputs", paper, 15)]
    parts += [_arrow(268, 142, 441, 142, ACCENT), _text(352, 164, "added to these", paper, 15)]
    parts.append(_text(510, 106, "y", paper, 22, weight="bold", anchor="start"))
    return _svg(562, 190, "A delta beside a frozen 8-bit weight", paper, parts)


DIAGRAMS = {
    "pipeline": (
        pipeline,
        "Five boxes joined by arrows: text, counts, neurons, delta, numbers, with the functions load_texts, "
        "profile_languages, select_specific, finetune and score_languages beneath.",
    ),
    "subnetwork": (
        subnetwork,
        "A feed-forward network drawn as three matrices. Two rows of the gate projection, the same two rows of the up "
        "projection and the same two columns of the down projection are coloured as trained; the rest is frozen.",
    ),
    "beside": (
        beside,
        "The input x goes through the frozen 8-bit weight, which gives all outputs, and through a small delta, whose "
        "result is added to the outputs of three chosen neurons.",
    ),
}
"""The function that draws each diagram, and its text alternative, by name."""


if __name__ == "__main__":
    (BOOK / "figures" / "pipeline.svg").write_text(pipeline(PAPERS["readme"]), encoding="utf-8")
