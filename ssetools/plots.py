"""Every figure, in one visual language: seaborn, colour-blind safe, readable at the width of a book page.

Each function draws one figure and returns its Axes or Figure. Every colour of a mark stands out from light and from dark
pages alike; `theme("dark")` turns the lettering and the ground.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.errors import InvalidInput
from ssetools.languages import get_language
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.selection import lape_entropy
from ssetools.neurons.sets import NeuronSets

BEFORE, AFTER, ACCENT = "#8b96a1", "#1380b0", "#d1495b"
"""The base or what all share; the tuned model; what a figure is about."""

PALETTE = (AFTER, ACCENT, "#00a39a", "#a6862a", "#9a4fd0", "#8d8dd9", "#a6426a", "#4b734b")
"""Colours of series, at least 3:1 against white and against dark pages, and apart for the colour-blind."""

RULE = "#7f8790"
"""Colour of lines that mark zero, chance or a limit."""

SEQUENTIAL = "rocket_r"
WIDTH = 8.0
_THEMES = {"light": ("#2b333b", "#dfe4e8", "white"), "dark": ("#d3dae1", "#3a434c", "#14181e")}  # ink, grid, ground
_theme = "light"


@contextlib.contextmanager
def theme(name: str) -> Iterator[None]:
    """Draws figures for a light or a dark page for the length of a `with` block; "light" is the default."""
    global _theme
    if name not in _THEMES:
        raise InvalidInput(f"Unknown theme {name!r}: use one of {', '.join(_THEMES)}.")
    before, _theme = _theme, name
    try:
        yield
    finally:
        _theme = before


def style() -> None:
    """Sets the one look of all figures."""
    ink, grid, ground = _THEMES[_theme]
    look = {f"{part}.color": ink for part in ("text", "xtick", "ytick")}
    look |= {"axes.labelcolor": ink, "axes.edgecolor": grid, "grid.color": grid, "font.family": "DejaVu Sans"}
    look |= {"figure.facecolor": ground, "axes.facecolor": ground, "savefig.facecolor": ground}
    look |= {"axes.titlesize": 12, "axes.titlelocation": "left", "figure.dpi": 110, "savefig.dpi": 110}
    look["svg.hashsalt"] = "ssetools"  # the same figure is the same file
    seaborn.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=look)


def _axes(height: float, width: float = WIDTH) -> Axes:
    style()
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _name(code: str) -> str:
    return get_language(code).name


def activation_probabilities(profile: ActivationProfile, languages: Sequence[str]) -> Axes:
    """Draws how the neurons' activation probabilities are distributed in each layer, over some languages.

    A line for each language at the median of its layer's neurons, with a band from the 25th to the 75th percentile
    of the first.
    """
    probabilities = profile.subset(languages).probabilities()
    axes = _axes(3.6)
    layers = range(probabilities.shape[1])
    colours = seaborn.color_palette(PALETTE, len(languages))
    for colour, code, rows in zip(colours, languages, probabilities, strict=True):
        axes.plot(layers, rows.median(1).values, color=colour, label=_name(code), linewidth=1.8)
    low, high = probabilities[0].quantile(0.25, 1), probabilities[0].quantile(0.75, 1)
    axes.fill_between(layers, low, high, color=colours[0], alpha=0.15, label=f"{_name(languages[0])}, middle half")
    axes.set(xlabel="layer", ylabel="activation probability", title="How often the neurons of a layer fire")
    axes.set_xticks(list(layers)[:: max(1, len(layers) // 9)])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def probability_similarity(profile: ActivationProfile) -> Axes:
    """Draws the correlation between languages of their neurons' activation probabilities."""
    values = numpy.corrcoef(profile.probabilities().flatten(1).numpy())
    return _square_heatmap(
        pandas.DataFrame(values, profile.languages, profile.languages),
        "Correlation of activation probabilities",
        vmin=float(values.min()),
        vmax=1.0,
    )


def entropy_histogram(profile: ActivationProfile, neurons: NeuronSets) -> Axes:
    """Draws the distribution of LAPE over all neurons, and over those that some language was given."""
    entropy = lape_entropy(profile)
    chosen = sum(neurons.mask(code).int() for code in neurons.languages).bool()
    axes = _axes(3.4)
    bins = numpy.linspace(float(entropy.min()), math.log(len(profile.languages)), 60)
    counts, _, _ = axes.hist(entropy.flatten().numpy(), bins, color=BEFORE, label="all neurons")
    top = max(1e5, 3 * counts.max())
    axes.hist(entropy[chosen].numpy(), bins, color=ACCENT, label="language-specific neurons")
    axes.axvline(bins[-1], color=RULE, linestyle=":", linewidth=1.2)
    axes.text(bins[-1], 0.3 * top, "fires for all alike ", ha="right", va="bottom", fontsize=9)
    axes.set(
        yscale="log",
        ylim=(0.7, top),
        xlabel="LAPE (nats)",
        ylabel="neurons",
        title="Low entropy: fires for few languages",
    )
    axes.legend(frameon=False, loc="upper left")
    return axes


def neurons_per_layer(neurons: NeuronSets) -> Axes:
    """Draws the number of neurons of each language in each layer as a heat map."""
    counts = [[len(ids) for ids in neurons[code]] for code in neurons.languages]
    labels = [f"{_name(code)}  {neurons.count(code)}" for code in neurons.languages]
    axes = _axes(0.27 * len(labels) + 1.0)
    table = pandas.DataFrame(counts, labels, range(neurons.num_layers))
    seaborn.heatmap(table, ax=axes, cmap=SEQUENTIAL, linewidths=0.5, cbar_kws={"label": "neurons"}, robust=True)
    axes.set(xlabel="layer", ylabel="", title="Language-specific neurons by layer (total beside the name)")
    axes.tick_params(axis="y", rotation=0)
    return axes


def overlap(neurons: NeuronSets) -> Axes:
    """Draws the Jaccard index of every two languages' neuron sets."""
    table = neurons.overlap()
    table = table.mask(numpy.eye(len(table), dtype=bool))
    return _square_heatmap(table, "Overlap of neuron sets (Jaccard)", vmin=0.0)


def _square_heatmap(table: pandas.DataFrame, title: str, **options) -> Axes:
    axes = _axes(6.4, 7.4)
    names = [_name(code) for code in table.columns]
    seaborn.heatmap(
        table.set_axis(names, axis=0).set_axis(names, axis=1),
        ax=axes,
        cmap=SEQUENTIAL,
        square=True,
        linewidths=0.3,
        **options,
    )
    axes.set_title(title)
    axes.grid(visible=False)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    return axes


def deactivation_matrix(changes: pandas.DataFrame) -> Axes:
    """Draws the change in ln perplexity of language B (columns) when the neurons of A (rows) are switched off.

    Languages differ in how easily they break, so colours compare within a column: the darkest square is the set that
    hurts this language most. The numbers are the changes themselves.

    Args:
        changes: Rows are codes of switched-off sets (or "random"), columns are codes of measured languages.
    """
    rows = [_name(code) if code != "random" else "random control" for code in changes.index]
    shares = (changes / changes.max()).clip(lower=0).set_axis(rows, axis=0)
    shares = shares.set_axis([_name(code) for code in changes.columns], axis=1)
    axes = _axes(0.42 * len(rows) + 1.6, 0.62 * len(rows) + 3.2)
    seaborn.heatmap(
        shares,
        ax=axes,
        cmap=SEQUENTIAL,
        vmin=0.0,
        vmax=1.0,
        annot=changes.to_numpy(),
        fmt=".2f",
        annot_kws={"fontsize": 8},
        linewidths=0.5,
        cbar_kws={"label": "share of the column's largest"},
    )
    axes.set(xlabel="ln perplexity measured in", ylabel="neurons switched off", title="Whose neurons are they?")
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)
    return axes


def loss_curve(log: pandas.DataFrame) -> Axes:
    """Draws training and validation loss over the tokens seen, from a run's log.csv."""
    axes = _axes(3.4)
    axes.plot(log.tokens, log.loss, color=BEFORE, linewidth=1.0, label="training batch")
    smooth = log.loss.ewm(span=10).mean()
    axes.plot(log.tokens, smooth, color=AFTER, linewidth=2.0, label="training, smoothed")
    checked = log.dropna(subset="validation_loss")
    axes.plot(checked.tokens, checked.validation_loss, "o-", color=ACCENT, label="validation text")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title="Training")
    axes.legend(frameon=False)
    return axes


def before_after(metrics: Mapping, lang: str) -> Figure:
    """Draws perplexity before and after for the target and English, one panel for each kind of text.

    Whiskers on "after" are the 95% interval of the paired change, over windows.
    """
    style()
    kinds = list(metrics["before"])
    figure, panels = plt.subplots(1, len(kinds), figsize=(WIDTH, 3.4), layout="constrained", squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        codes = [code for code in dict.fromkeys([lang, "en"]) if code in metrics["before"][kind]]
        for position, code in enumerate(codes):
            old = metrics["before"][kind][code]["perplexity"]
            new = metrics["after"][kind][code]["perplexity"]
            summary = metrics["summary"][kind]
            moved = summary["target"] if code == lang else summary["english"]
            axes.bar(position - 0.19, old, 0.36, color=BEFORE, label="before" if position == 0 else None)
            axes.bar(position + 0.19, new, 0.36, color=AFTER, label="after" if position == 0 else None)
            top = new
            if moved["low"] is not None:
                low, high = (old * (1 + moved[end] / 100) for end in ("low", "high"))
                axes.errorbar(
                    position + 0.19,
                    new,
                    [[max(0.0, new - low)], [max(0.0, high - new)]],
                    color=plt.rcParams["text.color"],
                    capsize=3,
                    linewidth=1.2,
                )
                top = high
            axes.annotate(
                f"{moved['percent']:+.0f}%" if abs(moved["percent"]) >= 10 else f"{moved['percent']:+.1f}%",
                (position + 0.19, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        relation = "like the training text" if kind in metrics["same_kind"] else "another kind of text"
        axes.set_xticks(range(len(codes)), [_name(code) for code in codes])
        axes.set_title(f"{kind}\n{relation}", fontsize=10)
        axes.margins(y=0.15)
        axes.grid(axis="x", visible=False)
    panels[0, 0].set_ylabel("perplexity")
    # Outside: there is no corner that is empty in every language.
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def retention(metrics: Mapping, lang: str) -> Axes:
    """Draws the change of perplexity in every language, in percent, one row a language and one dot a kind of text."""
    rows = [
        {"language": _name(code), "kind": kind, "percent": moved["percent"], "low": moved["low"], "high": moved["high"]}
        for kind, found in metrics["summary"].items()
        for code, moved in {lang: found["target"], **found["others"]}.items()
    ]
    table = pandas.DataFrame(rows)
    order = table.groupby("language").percent.mean().sort_values().index
    axes = _axes(0.26 * len(order) + 1.2)
    kinds = list(metrics["summary"])
    for offset, (kind, colour) in enumerate(zip(kinds, PALETTE, strict=False)):
        part = table[table.kind == kind].set_index("language").reindex(order).dropna(subset="percent")
        places = numpy.array([list(order).index(x) for x in part.index]) + 0.18 * (offset - (len(kinds) - 1) / 2)
        axes.plot(part.percent, places, "o", markersize=5, color=colour, label=kind)
        known = part.dropna(subset=["low", "high"])
        at = [places[list(part.index).index(x)] for x in known.index]
        axes.hlines(at, known.low.astype(float), known.high.astype(float), color=colour, linewidth=1.2)
    axes.axvline(0, color=RULE, linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set(xlabel="change of perplexity (%); left is better", title="What each language gained or lost")
    axes.legend(frameon=False, title="text", loc="lower left")  # rows that move least lie at the bottom
    return axes


def entropy_against_ratio(ratio: Sequence[float], entropy: Sequence[float]) -> Axes:
    """Draws LAPE against how much a neuron fires for the other languages, relative to its own."""
    axes = _axes(3.2)
    axes.plot(ratio, entropy, color=AFTER, linewidth=2)
    axes.axhline(max(entropy), color=RULE, linestyle=":", linewidth=1.2)
    axes.text(0.99, max(entropy), "ln(languages)", ha="right", va="bottom", fontsize=9)
    axes.margins(y=0.12)
    axes.set(xlabel="firing for each other language, relative to its own", ylabel="LAPE (nats)")
    axes.set_title("One language's neuron becomes everybody's")
    return axes


def firing(profile: ActivationProfile, layer: int = 0) -> Figure:
    """Draws how often each neuron of a layer fires in each language, a panel a neuron, with its LAPE; for a few neurons."""
    entropy = lape_entropy(profile)[layer]
    probabilities = profile.probabilities()[:, layer]
    style()
    names = [_name(code) for code in profile.languages]
    figure, panels = plt.subplots(
        1, len(entropy), figsize=(WIDTH, 2.6), layout="constrained", squeeze=False, sharey=True
    )
    for number, axes in enumerate(panels[0]):
        axes.bar(names, probabilities[:, number].tolist(), color=AFTER, width=0.6)
        axes.set_title(f"neuron {number}\nLAPE {entropy[number]:.2f}", fontsize=11)
        axes.tick_params(axis="x", rotation=90)
        axes.grid(axis="x", visible=False)
    panels[0, 0].set_ylabel("probability of firing")
    return figure


# --- plots_analysis ---


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
