"""The figures that pages show, drawn from the result files for light and for dark pages."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making import compared, fooling, results
from making.diagrams import DIAGRAMS, PAPERS
from making.figures_fooling import FOOLING
from making.figures_inside import INSIDE
from making.rows import dot, legend_above, set_rows
from ssetools import plots
from ssetools.plots import ACCENT, AFTER, BEFORE, RULE
from study.compare.plots import LOOKS

THEMES = ("light", "dark")


def draw_all() -> dict[str, str]:
    """Draws every figure for which there are results.

    Returns:
        Text by file name: `<name>-light.svg`, `<name>-dark.svg`, and `figure-<name>.md`, which pages include and which is
        empty where there is nothing to draw yet.
    """
    files: dict[str, str] = {}
    for name, (diagram, alt) in DIAGRAMS.items():
        files |= _files(name, {theme: diagram(PAPERS[theme]) for theme in THEMES}, alt)
    for name, (draw, alt) in {"gains": (gains, gains_in_words), "methods": (methods, methods_in_words)}.items():
        files |= _files(name, *_drawn(draw, alt))
    for name, (draw, alt) in INSIDE.items():
        files |= _files(name, *_drawn(draw, alt))
    found = fooling.experiments()
    for name, (draw, alt) in FOOLING.items():
        files |= _files(f"fooling-{name}", *(_drawn(draw, alt, found[name]) if name in found else ({}, "")))
    return files


def _drawn(draw, alt, *arguments) -> tuple[dict[str, str], str]:
    drawn = {}
    for theme in THEMES:
        with plots.theme(theme):
            figure = draw(*arguments)
            if figure is None:
                return {}, ""
            drawn[theme] = _svg(figure)
    return drawn, alt(*arguments)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(figure)
    return text.getvalue()


def _files(name: str, drawn: dict[str, str], alt: str) -> dict[str, str]:
    images = [
        f"```{{image}} _generated/{name}-{theme}.svg\n:class: only-{theme} drawn\n:alt: {alt}\n```\n" for theme in drawn
    ]
    files = {f"{name}-{theme}.svg": text for theme, text in drawn.items()}
    return {**files, f"figure-{name}.md": "\n".join(images)}


def gains() -> Figure | None:
    """One row a language: the change of perplexity on text like the training text, on another kind, and in the others."""
    found = results.measured()
    if not found:
        return None
    kinds = {code: results.other_kind(metrics) for code, metrics in found.items()}
    found = {code: metrics for code, metrics in found.items() if kinds[code]}
    order = sorted(found, key=lambda code: found[code]["summary"][kinds[code]]["target"]["percent"])
    plots.style()
    figure, axes = plt.subplots(figsize=(results.PAGE_WIDTH, 0.42 * len(order) + 1.7), layout="constrained")
    for row, code in enumerate(order):
        summary = found[code]["summary"]
        same = [summary[kind]["target"]["percent"] for kind in found[code]["same_kind"] if kind in summary]
        other = summary[kinds[code]]
        axes.plot(same, [row] * len(same), "o", mfc="none", mec=BEFORE, mew=1.8, ms=8, label="its text, trained kind")
        dot(axes, row, other["target"], AFTER, size=9, label="its text, another kind")
        axes.plot(other["mean_of_others"], row, "D", color=ACCENT, ms=6, label="other languages, another kind")
    set_rows(axes, [results.name_of(code) for code in order], "change of perplexity (%); left is better")
    legend_above(figure)
    return figure


def gains_in_words() -> str:
    """Says what the figure shows, for those who do not see it."""
    said = []
    for code, metrics in results.measured().items():
        kind = results.other_kind(metrics)
        if kind is None:
            continue
        other = metrics["summary"][kind]
        said.append(
            f"{results.name_of(code)} {results.percent(other['target']['percent'])} on another kind of text, "
            f"others {results.percent(other['mean_of_others'])}"
        )
    return "Dot plot of the change of perplexity, a row a language: " + "; ".join(said) + "."


def methods() -> Figure | None:
    """For the languages compared in full, a row a method: gain on both kinds of text, and what the others kept."""
    found = compared.summary()
    if found is None:
        return None
    languages = compared.leading(found)
    names = [x for x in compared.METHODS if any(x in found["languages"][lang]["methods"] for lang in languages)]
    plots.style()
    height = 1.2 + len(languages) * (0.24 * len(names) + 0.7)
    figure, grid = plt.subplots(
        len(languages),
        2,
        figsize=(results.PAGE_WIDTH, height),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for (left, right), lang in zip(grid, languages, strict=True):
        for row, name in enumerate(names):
            mine = found["languages"][lang]["methods"].get(name)
            if mine:
                (colour, marker), moved = LOOKS[name], mine["changes"]
                dot(left, row + 0.2, moved["target, articles"], BEFORE, "s", 5, mfc="none", mew=1.5)
                dot(left, row, moved["target, sentences"], colour, marker, 7)
                dot(right, row, moved["others, sentences"], colour, marker, 7)
        for axes, title in ((left, f"{results.name_of(lang)}: gain"), (right, "other languages")):
            set_rows(axes, names, "change of perplexity (%)" if lang == languages[-1] else "")
            axes.set_title(title, fontsize=11)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=RULE, label="filled: sentences, another kind"),
        plt.Line2D([], [], marker="s", linestyle="", mfc="none", mec=BEFORE, label="open: articles, trained kind"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def methods_in_words() -> str:
    """Says what the figure shows, for those who do not see it."""
    found = compared.summary()
    said = []
    for lang in compared.leading(found):
        mine = found["languages"][lang]["methods"]
        values = [
            f"{name} {results.percent(mine[name]['changes']['target, sentences']['value'])}"
            for name in compared.methods_in(found["languages"][lang])
        ]
        said.append(f"{results.name_of(lang)}: {', '.join(values)}")
    return (
        "Dot plot, a row a method, of the change of perplexity on sentences of another kind, with the numbers "
        + "; ".join(said)
        + ". Tables below hold the intervals, the trained kind and the other languages."
    )
