"""Draws the figures of the pages from the result files, for light and for dark pages."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making import compared, fooling, harm, results
from making.diagrams import DIAGRAMS, PAPERS
from making.figures_fooling import FOOLING
from making.figures_inside import INSIDE
from making.rows import dot, legend_above, set_rows
from ssetools import plots
from ssetools.plots import ACCENT, AFTER, BEFORE, RULE
from study.compare.plots import STYLES

THEMES = ("light", "dark")


def draw_all() -> dict[str, str]:
    """Draws every figure that has results.

    Returns:
        Text by file name: `<name>-light.svg`, `<name>-dark.svg`, and `figure-<name>.md`, which pages include; it is empty
        for a figure without results.
    """
    files: dict[str, str] = {}
    for name, (diagram, alt) in DIAGRAMS.items():
        files |= _files(name, {theme: diagram(PAPERS[theme]) for theme in THEMES}, alt)
    of_results = {"gains": (gains, gains_alt_text), "methods": (methods, methods_alt_text)}
    for name, (draw, alt) in (of_results | {"harm": (harm.figure, harm.alt_text)}).items():
        files |= _files(name, *_drawn(draw, alt))
    for name, (draw, alt) in INSIDE.items():
        files |= _files(name, *_drawn(draw, alt))
    experiments = fooling.experiments()
    for name, (draw, alt) in FOOLING.items():
        drawn = _drawn(draw, alt, experiments[name]) if name in experiments else ({}, "")
        files |= _files(f"fooling-{name}", *drawn)
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
    """Draws the change of perplexity in each language on the seen genres, on the unseen genre, and in the others."""
    metrics = {code: x for code, x in results.metrics_by_language().items() if results.unseen_genre(x)}
    if not metrics:
        return None
    unseen = {code: x["summary"][results.unseen_genre(x)] for code, x in metrics.items()}
    order = sorted(metrics, key=lambda code: unseen[code]["target"]["percent"])
    plots.style()
    figure, axes = plt.subplots(figsize=(results.PAGE_WIDTH, 0.42 * len(order) + 1.7), layout="constrained")
    for row, code in enumerate(order):
        summary = metrics[code]["summary"]
        seen = [summary[genre]["target"]["percent"] for genre in metrics[code]["same_kind"] if genre in summary]
        axes.plot(
            seen,
            [row] * len(seen),
            "o",
            mfc="none",
            mec=BEFORE,
            mew=1.8,
            ms=8,
            label="trained language, seen genres",
        )
        dot(axes, row, unseen[code]["target"], AFTER, size=9, label="trained language, unseen genre")
        axes.plot(unseen[code]["mean_of_others"], row, "D", color=ACCENT, ms=6, label="other languages, unseen genre")
    set_rows(axes, [results.language_name(code) for code in order], "change of perplexity (%); negative is better")
    legend_above(figure)
    return figure


def gains_alt_text() -> str:
    """Returns the text alternative of the figure."""
    parts = []
    for code, metrics in results.metrics_by_language().items():
        if genre := results.unseen_genre(metrics):
            changes = metrics["summary"][genre]
            parts.append(
                f"{results.language_name(code)} {results.percent(changes['target']['percent'])} on the unseen genre, "
                f"other languages {results.percent(changes['mean_of_others'])}"
            )
    return f"Dot plot of the change of perplexity, a row for each language: {'; '.join(parts)}."


def methods() -> Figure | None:
    """Draws the gain on both genres and the change in other languages by method, for the languages compared in full."""
    comparison = compared.summary()
    if comparison is None:
        return None
    languages = compared.languages_in_full(comparison)
    names = [x for x in compared.METHODS if any(x in comparison["languages"][lang]["methods"] for lang in languages)]
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
            if method := comparison["languages"][lang]["methods"].get(name):
                (colour, marker), changes = STYLES[name], method["changes"]
                dot(left, row + 0.2, changes["target, articles"], BEFORE, "s", 5, mfc="none", mew=1.5)
                dot(left, row, changes["target, sentences"], colour, marker, 7)
                dot(right, row, changes["others, sentences"], colour, marker, 7)
        for axes, title in ((left, f"{results.language_name(lang)}: gain"), (right, "other languages")):
            set_rows(axes, names, "change of perplexity (%)" if lang == languages[-1] else "")
            axes.set_title(title, fontsize=11)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=RULE, label="filled: sentences, unseen genre"),
        plt.Line2D([], [], marker="s", linestyle="", mfc="none", mec=BEFORE, label="open: articles, seen genre"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def methods_alt_text() -> str:
    """Returns the text alternative of the figure."""
    comparison = compared.summary()
    parts = []
    for lang in compared.languages_in_full(comparison):
        of_language = comparison["languages"][lang]
        values = [
            f"{name} {results.percent(of_language['methods'][name]['changes']['target, sentences']['value'])}"
            for name in compared.methods_of(of_language)
        ]
        parts.append(f"{results.language_name(lang)}: {', '.join(values)}")
    return (
        "Dot plot of the change of perplexity on sentences, an unseen genre, a row for each method: "
        f"{'; '.join(parts)}. The tables below contain the intervals, the seen genre and the other languages."
    )
