"""The figures of the page on fooling oneself, one for each experiment."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making.fooling import bos_changes, target
from making.results import PAGE_WIDTH, name_of, percent, rate
from making.rows import dot, legend_above, set_rows
from ssetools import plots
from ssetools.evaluation.perplexity import change
from ssetools.plots import ACCENT, AFTER, BEFORE, PALETTE, RULE


def _axes(height: float, columns: int = 1, **options):
    plots.style()
    return plt.subplots(1, columns, figsize=(PAGE_WIDTH, height), layout="constrained", **options)


def bos(found: dict) -> Figure:
    """The model trained without BOS: the change in each language, measured without BOS and with it."""
    moved = bos_changes(found)
    codes = list(moved["with"])
    figure, axes = _axes(0.4 * len(codes) + 1.4)
    for row, code in enumerate(codes):
        ends = [moved[way][code]["percent"] for way in ("without", "with")]
        axes.plot(ends, [row, row], color=BEFORE, linewidth=1.2)
        axes.plot(ends[0], row, "o", color=ACCENT, ms=8, label="measured without BOS")
        axes.plot(ends[1], row, "o", color=AFTER, ms=8, label="measured with BOS")
    names = [f"{name_of(code)} (trained)" if code == target() else name_of(code) for code in codes]
    set_rows(axes, names, "change of perplexity (%); left is better")
    legend_above(figure)
    return figure


def bos_in_words(found: dict) -> str:
    """Says what the figure shows."""
    moved = bos_changes(found)
    said = [
        f"{name_of(x)} {percent(moved['without'][x]['percent'])} without, {percent(moved['with'][x]['percent'])} with"
        for x in moved["with"]
    ]
    return f"Change of perplexity after training without BOS, measured without and with BOS: {'; '.join(said)}."


def memorised(found: dict) -> Figure:
    """Change of perplexity on four texts over the number of passes."""
    figure, axes = _axes(3.4)
    passes = found["passes"]
    places = range(len(passes))
    looks = dict(zip(passes["0"], ((BEFORE, "o"), (ACCENT, "s"), (PALETTE[3], "^"), (AFTER, "D")), strict=True))
    for kind, (colour, marker) in looks.items():
        moved = [change(passes["0"][kind], scores[kind])["percent"] for scores in passes.values()]
        axes.plot(places, moved, color=colour, marker=marker, linewidth=2, label=kind)
    axes.axhline(0, color=RULE, linewidth=1)
    axes.set_xticks(places, list(passes))
    axes.set(xlabel="passes over the declaration", ylabel="change of perplexity (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memorised_in_words(found: dict) -> str:
    """Says what the figure shows."""
    passes = found["passes"]
    last = list(passes)[-1]
    said = [f"{kind} {percent(change(passes['0'][kind], passes[last][kind])['percent'])}" for kind in passes["0"]]
    return f"Lines of the change of perplexity over passes. After {last}: {', '.join(said)}."


def rates(found: dict) -> Figure:
    """Both methods at both rates, each with its interval."""
    figure, axes = _axes(2.6)
    runs = sorted(found["runs"], key=lambda run: -run["learning_rate"])
    looks = {"lape": (AFTER, "o", "the language's neurons"), "random": (ACCENT, "^", "random neurons")}
    for row, run in enumerate(runs):
        dot(axes, row, change(found["base"], run["scores"]), *looks[run["method"]][:2])
    names = [f"{looks[run['method']][2]}, {rate(run['learning_rate'])}" for run in runs]
    set_rows(axes, names, "change of perplexity (%)")
    return figure


def rates_in_words(found: dict) -> str:
    """Says what the figure shows."""
    said = [
        f"{run['method']} at {rate(run['learning_rate'])} {percent(change(found['base'], run['scores'])['percent'])}"
        for run in found["runs"]
    ]
    return f"Change of perplexity of two methods at two learning rates: {', '.join(said)}."


def padding(found: dict) -> Figure:
    """The loss of each step as it was taken, and what held-out words say before and after."""
    figure, (left, right) = _axes(3.2, 2)
    looks = {"counted": (ACCENT, "padding in the loss"), "ignored": (AFTER, "padding ignored")}
    for counted, (colour, name) in looks.items():
        left.plot(range(1, len(found["runs"][counted]["history"]) + 1), found["runs"][counted]["history"], color=colour)
        ends = [found["base"]["ignored"], found["runs"][counted]["after"]["ignored"]]
        right.plot([0, 1], [math.exp(x) for x in ends], "o-", color=colour, label=name)
    left.set(xlabel="step", ylabel="loss (nats per token)", title="What the training log says", ylim=(0, None))
    right.set(ylabel="perplexity of words", title="What held-out text says", xlim=(-0.3, 1.3))
    right.set_xticks([0, 1], ["before", "after"])
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=10)
    return figure


def padding_in_words(found: dict) -> str:
    """Says what the figure shows."""
    said = []
    for counted, name in (("counted", "padding in the loss"), ("ignored", "padding ignored")):
        run = found["runs"][counted]
        moved = 100 * math.expm1(run["after"]["ignored"] - found["base"]["ignored"])
        said.append(
            f"{name}: logged loss from {run['history'][0]:.2f} to {run['history'][-1]:.2f}, words {percent(moved)}"
        )
    return f"Left, loss over steps; right, perplexity of held-out words before and after. {'; '.join(said)}."


_MERGES = {"delta beside 8-bit": "8-bit base", "merged into int8": "8-bit base", "merged into 16-bit": "16-bit base"}


def merging(found: dict) -> Figure:
    """The change from each base: the delta beside int8, merged into int8, merged into 16 bits."""
    figure, axes = _axes(2.2)
    for row, (name, base) in enumerate(_MERGES.items()):
        dot(axes, row, change(found[base], found[name]), ACCENT if name == "merged into int8" else AFTER)
    set_rows(axes, list(_MERGES), "change of perplexity (%)")
    return figure


def merging_in_words(found: dict) -> str:
    """Says what the figure shows."""
    said = [f"{name} {percent(change(found[base], found[name])['percent'])}" for name, base in _MERGES.items()]
    return f"Change of perplexity from the base: {', '.join(said)}."


FOOLING = {
    "bos": (bos, bos_in_words),
    "memorised": (memorised, memorised_in_words),
    "rates": (rates, rates_in_words),
    "padding": (padding, padding_in_words),
    "merging": (merging, merging_in_words),
}
"""Drawing and alternative text by experiment."""
