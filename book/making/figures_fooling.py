"""Figures of the experiments on common mistakes, one for each."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making.fooling import BASE_OF, changes_without_bos, target
from making.results import PAGE_WIDTH, format_rate, language_name, percent
from making.rows import dot, legend_above, set_rows
from ssetools import plots
from ssetools.evaluation.perplexity import change
from ssetools.plots import ACCENT, AFTER, BEFORE, PALETTE, RULE


def _axes(height: float, columns: int = 1, **options):
    plots.style()
    return plt.subplots(1, columns, figsize=(PAGE_WIDTH, height), layout="constrained", **options)


def bos(results: dict) -> Figure:
    """Draws the change of the model trained without BOS in each language, measured without and with BOS."""
    changes = changes_without_bos(results)
    codes = list(changes["with"])
    figure, axes = _axes(0.4 * len(codes) + 1.4)
    for row, code in enumerate(codes):
        without, with_bos = (changes[way][code]["percent"] for way in ("without", "with"))
        axes.plot([without, with_bos], [row, row], color=BEFORE, linewidth=1.2)
        axes.plot(without, row, "o", color=ACCENT, ms=8, label="measured without BOS")
        axes.plot(with_bos, row, "o", color=AFTER, ms=8, label="measured with BOS")
    names = [f"{language_name(code)} (trained)" if code == target() else language_name(code) for code in codes]
    set_rows(axes, names, "change of perplexity (%); negative is better")
    legend_above(figure)
    return figure


def bos_alt_text(results: dict) -> str:
    """Returns the text alternative of the figure."""
    changes = changes_without_bos(results)
    parts = [
        f"{language_name(x)} {percent(changes['without'][x]['percent'])} without, "
        f"{percent(changes['with'][x]['percent'])} with"
        for x in changes["with"]
    ]
    return f"Change of perplexity after training without BOS, measured without and with BOS: {'; '.join(parts)}."


def memorised(results: dict) -> Figure:
    """Draws the change of perplexity on four texts over the number of passes."""
    figure, axes = _axes(3.4)
    passes = results["passes"]
    styles = dict(zip(passes["0"], ((BEFORE, "o"), (ACCENT, "s"), (PALETTE[3], "^"), (AFTER, "D")), strict=True))
    for text, (colour, marker) in styles.items():
        changes = [change(passes["0"][text], scores[text])["percent"] for scores in passes.values()]
        axes.plot(changes, color=colour, marker=marker, linewidth=2, label=text)
    axes.axhline(0, color=RULE, linewidth=1)
    axes.set_xticks(range(len(passes)), list(passes))
    axes.set(xlabel="passes over the declaration", ylabel="change of perplexity (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memorised_alt_text(results: dict) -> str:
    """Returns the text alternative of the figure."""
    passes = results["passes"]
    last = list(passes)[-1]
    parts = [f"{text} {percent(change(passes['0'][text], passes[last][text])['percent'])}" for text in passes["0"]]
    return f"Line chart of the change of perplexity over passes. After {last} passes: {', '.join(parts)}."


def rates(results: dict) -> Figure:
    """Draws the change of both methods at both rates, with intervals."""
    figure, axes = _axes(2.6)
    runs = sorted(results["runs"], key=lambda run: -run["learning_rate"])
    styles = {"lape": (AFTER, "o", "the language's neurons"), "random": (ACCENT, "^", "random neurons")}
    for row, run in enumerate(runs):
        dot(axes, row, change(results["base"], run["scores"]), *styles[run["method"]][:2])
    names = [f"{styles[run['method']][2]}, {format_rate(run['learning_rate'])}" for run in runs]
    set_rows(axes, names, "change of perplexity (%)")
    return figure


def rates_alt_text(results: dict) -> str:
    """Returns the text alternative of the figure."""
    parts = [
        f"{run['method']} at {format_rate(run['learning_rate'])} "
        f"{percent(change(results['base'], run['scores'])['percent'])}"
        for run in results["runs"]
    ]
    return f"Change of perplexity of two methods at two learning rates: {', '.join(parts)}."


_PADDING = {"counted": (ACCENT, "padding in the loss"), "ignored": (AFTER, "padding excluded")}


def padding(results: dict) -> Figure:
    """Draws the training loss of each step, and the perplexity of held-out words before and after training."""
    figure, (left, right) = _axes(3.2, 2)
    for counted, (colour, label) in _PADDING.items():
        run = results["runs"][counted]
        left.plot(range(1, len(run["history"]) + 1), run["history"], color=colour)
        losses = [results["base"]["ignored"], run["after"]["ignored"]]
        right.plot([0, 1], [math.exp(x) for x in losses], "o-", color=colour, label=label)
    left.set(xlabel="step", ylabel="loss (nats per token)", title="Training loss", ylim=(0, None))
    right.set(ylabel="perplexity of words", title="Held-out text", xlim=(-0.3, 1.3))
    right.set_xticks([0, 1], ["before", "after"])
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=10)
    return figure


def padding_alt_text(results: dict) -> str:
    """Returns the text alternative of the figure."""
    parts = []
    for counted, (_, label) in _PADDING.items():
        run = results["runs"][counted]
        perplexity = percent(100 * math.expm1(run["after"]["ignored"] - results["base"]["ignored"]))
        losses = f"from {run['history'][0]:.2f} to {run['history'][-1]:.2f}"
        parts.append(f"{label}: training loss {losses}, perplexity of words {perplexity}")
    return f"Left, training loss over steps; right, perplexity of held-out words before and after. {'; '.join(parts)}."


def merging(results: dict) -> Figure:
    """Draws the change from each base of the delta beside int8 weights, merged into them, and merged into 16 bits."""
    figure, axes = _axes(2.2)
    for row, (name, base) in enumerate(BASE_OF.items()):
        dot(axes, row, change(results[base], results[name]), ACCENT if name == "merged into int8" else AFTER)
    set_rows(axes, list(BASE_OF), "change of perplexity (%)")
    return figure


def merging_alt_text(results: dict) -> str:
    """Returns the text alternative of the figure."""
    parts = [f"{name} {percent(change(results[base], results[name])['percent'])}" for name, base in BASE_OF.items()]
    return f"Change of perplexity from the base model: {', '.join(parts)}."


FOOLING = {
    "bos": (bos, bos_alt_text),
    "memorised": (memorised, memorised_alt_text),
    "rates": (rates, rates_alt_text),
    "padding": (padding, padding_alt_text),
    "merging": (merging, merging_alt_text),
}
"""The functions that return the figure and its text alternative, by experiment."""
