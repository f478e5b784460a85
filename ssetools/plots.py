"""Figures in one visual language: seaborn, safe for the colour-blind, readable at the width of a book page.

The colours of all marks contrast with light and with dark pages; `theme("dark")` changes text, grid and background.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy
import pandas
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import percent
from ssetools.languages import get_language
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.selection import lape_entropy
from ssetools.neurons.sets import NeuronSets

# Of the base or of what all share, of the tuned model, and of the subject of a figure.
BEFORE, AFTER, ACCENT = "#8b96a1", "#1380b0", "#d1495b"
# Of series: at least 3:1 against white and against dark pages, and distinct for the colour-blind.
PALETTE = (AFTER, ACCENT, "#00a39a", "#a6862a", "#9a4fd0", "#8d8dd9", "#a6426a", "#4b734b")
RULE = "#7f8790"  # of lines that mark zero, chance or a limit
SEQUENTIAL = "rocket_r"
WIDTH = 8.0
_THEMES = {"light": ("#2b333b", "#dfe4e8", "white"), "dark": ("#d3dae1", "#3a434c", "#14181e")}  # text, grid, page
_theme = "light"


@contextlib.contextmanager
def theme(name: str) -> Iterator[None]:
    """Draws figures for a "light" (the default) or a "dark" page while the block runs; refuses another name."""
    global _theme
    if name not in _THEMES:
        raise InvalidInput(f"Unknown theme {name!r}: use one of {', '.join(_THEMES)}.")
    before, _theme = _theme, name
    try:
        yield
    finally:
        _theme = before


def style() -> None:
    """Sets the style that all figures share."""
    text, grid, page = _THEMES[_theme]
    look = {f"{part}.color": text for part in ("text", "xtick", "ytick")}
    look |= {"axes.labelcolor": text, "axes.edgecolor": grid, "grid.color": grid, "font.family": "DejaVu Sans"}
    look |= {"figure.facecolor": page, "axes.facecolor": page, "savefig.facecolor": page}
    look |= {"axes.titlesize": 12, "axes.titlelocation": "left", "figure.dpi": 110, "savefig.dpi": 110}
    look["svg.hashsalt"] = "ssetools"  # the same figure is the same file
    seaborn.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=look)


def _axes(height: float, width: float = WIDTH) -> Axes:
    return _panels(1, height, width)[1][0]


def _panels(count: int, height: float, width: float = WIDTH, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    style()
    figure, panels = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False, sharey=sharey)
    return figure, panels[0]


def _name(code: str) -> str:
    return get_language(code).name


def _heatmap(table: pandas.DataFrame, axes: Axes, x_rotation: int = 0, **options: Any) -> None:
    seaborn.heatmap(table, ax=axes, cmap=SEQUENTIAL, **{"linewidths": 0.5, **options})
    axes.tick_params(axis="x", rotation=x_rotation)
    axes.tick_params(axis="y", rotation=0)


# --- profiles and sets ---


def activation_probabilities(profile: ActivationProfile, languages: Sequence[str]) -> Axes:
    """Draws each layer's median activation probability for some languages, and the middle half for the first."""
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
    table = pandas.DataFrame(values, profile.languages, profile.languages)
    return _between_languages(table, "Correlation of activation probabilities", vmin=float(values.min()), vmax=1.0)


def overlap(neurons: NeuronSets) -> Axes:
    """Draws the Jaccard index of every two languages' neuron sets."""
    table = neurons.overlap()
    table = table.mask(numpy.eye(len(table), dtype=bool))
    return _between_languages(table, "Overlap of neuron sets (Jaccard)", vmin=0.0)


def _between_languages(table: pandas.DataFrame, title: str, **options: Any) -> Axes:
    axes = _axes(6.4, 7.4)
    _heatmap(table.rename(index=_name, columns=_name), axes, 90, square=True, linewidths=0.3, **options)
    axes.set_title(title)
    axes.grid(visible=False)
    return axes


def entropy_histogram(profile: ActivationProfile, neurons: NeuronSets) -> Axes:
    """Draws the distribution of LAPE over all neurons, and over those that were selected for any language."""
    entropy = lape_entropy(profile)
    chosen = torch.stack([neurons.mask(code) for code in neurons.languages]).any(0)
    axes = _axes(3.4)
    bins = numpy.linspace(float(entropy.min()), math.log(len(profile.languages)), 60).tolist()
    counts = axes.hist(entropy.flatten().numpy(), bins, color=BEFORE, label="all neurons")[0]
    top = max(1e5, 3 * numpy.max(counts))
    axes.hist(entropy[chosen].numpy(), bins, color=ACCENT, label="language-specific neurons")
    axes.axvline(bins[-1], color=RULE, linestyle=":", linewidth=1.2)
    axes.text(bins[-1], 0.3 * top, "fires equally for all ", ha="right", va="bottom", fontsize=9)
    axes.set(yscale="log", ylim=(0.7, top), xlabel="LAPE (nats)", ylabel="neurons")
    axes.set_title("Low entropy: fires for few languages")
    axes.legend(frameon=False, loc="upper left")
    return axes


def neurons_per_layer(neurons: NeuronSets) -> Axes:
    """Draws the number of neurons of each language in each layer as a heat map."""
    counts = [[len(ids) for ids in neurons[code]] for code in neurons.languages]
    labels = [f"{_name(code)}  {neurons.count(code)}" for code in neurons.languages]
    axes = _axes(0.27 * len(labels) + 1.0)
    table = pandas.DataFrame(counts, labels, range(neurons.num_layers))
    _heatmap(table, axes, cbar_kws={"label": "neurons"}, robust=True)
    axes.set(xlabel="layer", ylabel="", title="Language-specific neurons by layer (total beside the name)")
    return axes


def deactivation_matrix(changes: pandas.DataFrame) -> Axes:
    """Draws the change in ln perplexity of language B (columns) when the neurons of A (rows) are switched off.

    Languages differ in how sensitive they are, so colours compare within a column: the darkest square is the set that
    hurts this language most. The numbers are the changes themselves.
    """
    names = {"random": "random control"} | {code: _name(code) for code in changes.columns}
    shares = (changes / changes.max()).clip(lower=0).rename(index=names, columns=names)
    axes = _axes(0.42 * len(changes) + 1.6, 0.62 * len(changes) + 3.2)
    numbers = {"annot": changes.to_numpy(), "fmt": ".2f", "annot_kws": {"fontsize": 8}}
    _heatmap(shares, axes, 45, vmin=0.0, vmax=1.0, cbar_kws={"label": "share of the column's largest"}, **numbers)
    axes.set(xlabel="ln perplexity measured in", ylabel="neurons switched off", title="Whose neurons are they?")
    return axes


# --- training and evaluation ---


def loss_curve(log: pandas.DataFrame) -> Axes:
    """Draws training and validation loss over the tokens seen, from a run's log.csv."""
    axes = _axes(3.4)
    axes.plot(log.tokens, log.loss, color=BEFORE, linewidth=1.0, label="training batch")
    axes.plot(log.tokens, log.loss.ewm(span=10).mean(), color=AFTER, linewidth=2.0, label="training, smoothed")
    validated = log.dropna(subset="validation_loss")
    axes.plot(validated.tokens, validated.validation_loss, "o-", color=ACCENT, label="validation text")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title="Training")
    axes.legend(frameon=False)
    return axes


def dynamics(logs: Mapping[str, pandas.DataFrame]) -> Figure:
    """Draws training and validation loss of runs, from the log.csv of each, against tokens and seconds of training."""
    figure, panels = _panels(2, 3.6, sharey=True)
    for colour, (run, log) in zip(seaborn.color_palette(PALETTE, len(logs)), logs.items(), strict=True):
        seconds = (log.tokens.diff().fillna(log.tokens) / log.tokens_per_second).cumsum()
        validated = log.validation_loss.notna()
        for axes, over in zip(panels, (log.tokens, seconds), strict=True):
            axes.plot(over, log.loss.ewm(span=10).mean(), color=colour, alpha=0.45, linewidth=1.2)
            axes.plot(over[validated], log.validation_loss[validated], "o-", color=colour, label=run, markersize=4)
    panels[0].set(xlabel="tokens", ylabel="loss (nats per token)", title="Dots: validation; faint: training, smoothed")
    panels[1].set_xlabel("seconds")
    panels[1].legend(frameon=False)
    return figure


def before_after(metrics: Mapping, lang: str) -> Figure:
    """Draws perplexity before and after, for the target and English, with the 95% interval of the paired change."""
    genres = list(metrics["before"])
    figure, panels = _panels(len(genres), 3.4)
    for axes, genre in zip(panels, genres, strict=True):
        summary = metrics["summary"][genre]
        english = {"en": summary["english"]} if lang != "en" and summary["english"] else {}
        changes = {lang: summary["target"], **english}
        for place, (code, change) in enumerate(changes.items()):
            old, new = (metrics[when][genre][code]["perplexity"] for when in ("before", "after"))
            axes.bar(place - 0.19, old, 0.36, color=BEFORE, label="before" if place == 0 else None)
            axes.bar(place + 0.19, new, 0.36, color=AFTER, label="after" if place == 0 else None)
            low, high = (new if change[end] is None else old * (1 + change[end] / 100) for end in ("low", "high"))
            if change["low"] is not None:
                line = {"color": plt.rcParams["text.color"], "linewidth": 1.2, "capsize": 3}
                axes.errorbar(place + 0.19, new, [[max(0.0, new - low)], [max(0.0, high - new)]], **line)
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 9}
            digits = 0 if abs(change["percent"]) >= 10 else 1
            axes.annotate(percent(change["percent"], digits), (place + 0.19, high), **above)
        axes.set_xticks(range(len(changes)), [_name(code) for code in changes])
        axes.set_title(f"{genre}\n{'seen' if genre in metrics['same_kind'] else 'unseen'} genre", fontsize=10)
        axes.margins(y=0.15)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("perplexity")
    # Outside: no corner is empty in every language.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def retention(metrics: Mapping, lang: str) -> Axes:
    """Draws the change of perplexity in every language, in percent: a row a language, a dot with its interval a genre."""
    rows = [
        {"language": _name(code), "genre": genre, **change}
        for genre, summary in metrics["summary"].items()
        for code, change in {lang: summary["target"], **summary["others"]}.items()
    ]
    table = pandas.DataFrame(rows).astype({"low": float, "high": float})
    order = list(table.groupby("language").agg({"percent": "mean"}).sort_values("percent").index)
    genres = list(metrics["summary"])
    axes = _axes(0.26 * len(order) + 1.2)
    for offset, (genre, colour) in enumerate(zip(genres, PALETTE, strict=False)):
        part = table[table["genre"] == genre]
        places = [order.index(name) + 0.18 * (offset - (len(genres) - 1) / 2) for name in part["language"]]
        axes.plot(part["percent"], places, "o", markersize=5, color=colour, label=genre)
        axes.hlines(places, part["low"], part["high"], color=colour, linewidth=1.2)
    axes.axvline(0, color=RULE, linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set(xlabel="change of perplexity (%); left is better", title="What each language gained or lost")
    axes.legend(frameon=False, title="text", loc="lower left")  # the languages at the bottom change least
    return axes


# --- inside the model ---


def alignment_by_layer(base: pandas.DataFrame, tuned: pandas.DataFrame, pairs: int) -> Figure:
    """Draws cosine, its margin over wrong pairs, and retrieval over layers, with 95% bands, from `Alignment.table()`.

    `pairs` is the number of passages: chance retrieves one in so many.
    """
    figure, (left, middle, right) = _panels(3, 3.4, WIDTH + 1.5)
    for table, line, when, colour in ((base, "--", "base", PALETTE[0]), (tuned, "-", "tuned", PALETTE[1])):
        for axes, measure, shade, label in (
            (left, "matched", colour, f"translation, {when}"),
            (left, "shuffled", RULE, f"wrong passage, {when}"),
            (middle, "margin", colour, when),
            (right, "retrieved", colour, when),
        ):
            part = table[table["measure"] == measure]
            axes.plot(part["layer"], part["mean"], line, color=shade, label=label)
            axes.fill_between(part["layer"], part["low"], part["high"], color=shade, alpha=0.12)
    middle.axhline(0, color=RULE, linewidth=1)
    right.axhline(1 / pairs, color=RULE, linewidth=1, linestyle=":")
    right.annotate("chance", (0, 1 / pairs), xytext=(0, 2), textcoords="offset points", fontsize=8)
    left.set(ylabel="cosine", title="Similarity", ylim=(None, 1.02))
    middle.set(ylabel="cosine above wrong pairs", title="Margin")
    right.set(ylabel="share", title="Translation retrieved", ylim=(0, 1.02))
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.set_xlabel("layer (0: embedding)")
    return figure


def change_by_layer(changes: pandas.DataFrame) -> Axes:
    """Draws the change of each layer's projections relative to the touched neurons' weights, from `weight_change`."""
    table = 100 * changes.pivot(index="projection", columns="layer", values="relative")
    table = table.reindex([name for name in ("gate", "up", "down") if name in table.index])
    axes = _axes(0.6 * len(table) + 1.4)
    _heatmap(table, axes, cbar_kws={"label": "% of the base norm"})
    axes.set(xlabel="layer", ylabel="", title="Where the weights moved")
    return axes
