"""Draws the two diagrams of the book and the README as SVG. Run: python book/figures/draw.py"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
INK, GREY, BLUE, RED = "#4a5560", "#cfd6dd", "#0b6e99", "#d1495b"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(x, y, words, size=15, colour=INK, anchor="middle", weight="normal"):
    style = f"{FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}' font-weight='{weight}'"
    return f"<text x='{x}' y='{y}' {style}>{words}</text>"


def box(x, y, width, height, colour, stroke="none"):
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='4' fill='{colour}' stroke='{stroke}'/>"


def arrow(x1, x2, y):
    return (
        f"<line x1='{x1}' y1='{y}' x2='{x2 - 7}' y2='{y}' stroke='{INK}' stroke-width='2'/>"
        f"<path d='M{x2 - 9} {y - 5} L{x2} {y} L{x2 - 9} {y + 5} Z' fill='{INK}'/>"
    )


def svg(name, width, height, title, parts):
    body = "\n".join([box(0, 0, width, height, "#ffffff"), *parts])
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img'><title>{title}</title>"
    (HERE / name).write_text(f"{head}\n{body}\n</svg>\n", encoding="utf-8")


def pipeline():
    """Text, counts, neuron sets, delta, numbers: five boxes, each a file."""
    steps = [
        ("text", "any language", "load_texts"),
        ("counts", "which neurons fire", "profile_languages"),
        ("neurons", "which are the language's", "select_neurons"),
        ("delta", "train only those", "finetune"),
        ("numbers", "gained and kept", "evaluate"),
    ]
    parts = []
    for i, (name, about, function) in enumerate(steps):
        x = 20 + 192 * i
        colour = RED if name == "delta" else BLUE
        parts += [box(x, 30, 150, 84, "#f4f7f9", colour), text(x + 75, 66, name, 20, colour, weight="bold")]
        parts += [text(x + 75, 92, about, 12.5), text(x + 75, 140, function, 12.5)]
        if i:
            parts.append(arrow(x - 38, x - 4, 72))
    svg("pipeline.svg", 958, 160, "Text, activation counts, neuron sets, a small delta, numbers", parts)


def subnetwork():
    """Three matrices with the rows and columns of two neurons coloured."""
    parts = []
    for x, name in ((40, "gate"), (260, "up")):
        parts += [text(x + 80, 24, f"{name} projection", 15, INK, weight="bold")]
        parts += [box(x, 40 + 18 * row, 160, 14, RED if row in (2, 7) else GREY) for row in range(11)]
        parts.append(text(x + 80, 262, "rows: neurons", 13))
    parts.append(text(590, 24, "down projection", 15, INK, weight="bold"))
    parts += [box(490 + 18 * column, 58, 14, 158, RED if column in (2, 7) else GREY) for column in range(11)]
    parts.append(text(590, 262, "columns: neurons", 13))
    parts += [box(740, 92, 16, 14, RED), text(764, 104, "trained", 14, anchor="start")]
    parts += [box(740, 124, 16, 14, GREY), text(764, 136, "frozen, 8-bit", 14, anchor="start")]
    svg("subnetwork.svg", 880, 280, "The slices of two neurons in gate, up and down projection", parts)


if __name__ == "__main__":
    pipeline()
    subnetwork()
