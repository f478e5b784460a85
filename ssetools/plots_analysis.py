"""The figures of the look inside: alignment by layer, where weights moved, the course of training, amplification."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.languages import get_language
from ssetools.plots import PALETTE, RULE, SEQUENTIAL, WIDTH, style


def alignment_by_layer(base: pandas.DataFrame, tuned: pandas.DataFrame, pairs: int) -> Figure:
    """Draws cosine (left), its margin over wrong pairs (middle) and retrieval (right) over layers, with 95% bands.

    Args:
        base: `Alignment.table()` of the base.
        tuned: The same with the adapter.
        pairs: Number of passages: one in so many is found by chance.
    """
    style()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH + 1.5, 3.4), layout="constrained")
    colours = PALETTE
    for table, line, when, colour in ((base, "--", "base", colours[0]), (tuned, "-", "tuned", colours[1])):
        _band(left, table, "matched", colour, line, f"translation, {when}")
        _band(left, table, "shuffled", RULE, line, f"wrong passage, {when}")
        _band(middle, table, "margin", colour, line, when)
        _band(right, table, "retrieved", colour, line, when)
    middle.axhline(0, color=RULE, linewidth=1)
    right.axhline(1 / pairs, color=RULE, linewidth=1, linestyle=":")
    right.annotate("chance", (0, 1 / pairs), xytext=(0, 2), textcoords="offset points", fontsize=8)
    left.set(ylabel="cosine", title="How near", ylim=(None, 1.02))
    middle.set(ylabel="cosine above wrong pairs", title="How much nearer")
    right.set(ylabel="share", title="Translation found first", ylim=(0, 1.02))
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.set_xlabel("layer (0: embedding)")
    return figure


def _band(axes, table, measure, colour, line, label):
    part = table[table.measure == measure]
    axes.plot(part.layer, part["mean"], line, color=colour, label=label)
    axes.fill_between(part.layer, part.low, part.high, color=colour, alpha=0.12)


def change_by_layer(changes: pandas.DataFrame) -> Axes:
    """Draws the change of each layer's gate, up and down projection, relative to the touched neurons' base weights."""
    style()
    table = 100 * changes.pivot(index="projection", columns="layer", values="relative")
    table = table.reindex([name for name in ("gate", "up", "down") if name in table.index])
    axes = plt.subplots(figsize=(WIDTH, 0.6 * len(table) + 1.4), layout="constrained")[1]
    seaborn.heatmap(table, ax=axes, cmap=SEQUENTIAL, linewidths=0.5, cbar_kws={"label": "% of the base norm"})
    axes.set(xlabel="layer", ylabel="", title="Where the weights moved")
    axes.tick_params(axis="y", rotation=0)
    return axes


def dynamics(logs: pandas.DataFrame) -> Figure:
    """Draws training and validation loss of every run against tokens and against seconds."""
    style()
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained", sharey=True)
    colours = seaborn.color_palette(PALETTE, logs.run.nunique())
    for axes, over in zip(panels, ("tokens", "seconds"), strict=True):
        for colour, (run, log) in zip(colours, logs.groupby("run"), strict=True):
            axes.plot(log[over], log.loss.ewm(span=10).mean(), color=colour, alpha=0.45, linewidth=1.2)
            checked = log.dropna(subset="validation_loss")
            axes.plot(checked[over], checked.validation_loss, "o-", color=colour, label=run, markersize=4)
        axes.set_xlabel(over)
    panels[0].set(ylabel="loss (nats per token)", title="Dots: validation; faint: training, smoothed")
    panels[1].legend(frameon=False)
    return figure


def amplification(shares: pandas.DataFrame, lang: str) -> Axes:
    """Draws the share of continuations identified as a language, against the factor, with 95% intervals.

    Args:
        shares: What `identified_shares` returned.
        lang: The language.
    """
    style()
    axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")[1]
    colours = PALETTE
    factors = sorted(shares.factor.unique())
    for offset, (colour, (name, part)) in enumerate(zip(colours, shares.groupby("neurons", sort=False), strict=False)):
        places = [factors.index(factor) + 0.08 * (offset - 0.5) for factor in part.factor]
        label = f"{get_language(lang).name} neurons" if name == lang else "random neurons of the same layers"
        errors = [part.share - part.low, part.high - part.share]
        axes.errorbar(places, part.share, errors, fmt="o-", color=colour, capsize=3, label=label)
    axes.set_xticks(range(len(factors)), [f"{factor:g}" for factor in factors])
    axes.set(
        xlabel="neurons' output multiplied by",
        ylabel=f"identified as {get_language(lang).name}",
        ylim=(0, max(0.2, 1.1 * shares.high.max())),
    )
    axes.set_title("Does turning the neurons up make the model speak the language?")
    axes.legend(frameon=False, loc="upper left")
    return axes
