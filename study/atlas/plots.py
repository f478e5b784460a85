"""Figures of the atlas: neurons by layer, overlap, stability, the map, and the effects of switching sets off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.cluster import hierarchy

from ssetools.evaluation.intervals import with_interval
from ssetools.languages import get_language
from ssetools.neurons.sets import NeuronSets
from ssetools.plots import ACCENT, AFTER, PALETTE, RULE, SEQUENTIAL, WIDTH, style
from study.atlas.effects import effect_table
from study.atlas.statistics import average_linkage, jaccard_distances

_OTHER = "#c9ced6"
_FACT_LABELS = {
    "tokens_per_byte": "tokens per byte",
    "tokens_per_word": "tokens per word",
    "nats_per_token": "loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "wikipedia_articles": "Wikipedia articles",
}


def _colours(labels: Sequence[str], palette: str = "tab10") -> dict[str, str]:
    """Assigns a colour to each of the commonest labels; grey is left for the others."""
    colours = [x for x in seaborn.color_palette(palette) if max(x) - min(x) > 0.05]
    common = pandas.Series(list(labels)).value_counts().index
    return dict(zip(common, map(to_hex, colours), strict=False))


def neurons_by_layer(neurons: NeuronSets) -> Figure:
    """Draws the number of neurons of each language by layer (left) and in total (right), in descending order."""
    rows = sorted(neurons, key=lambda lang: -neurons.count(lang))
    table = numpy.array([[len(ids) for ids in neurons[lang]] for lang in rows])
    style()
    figure, (axes, total) = plt.subplots(
        1, 2, figsize=(WIDTH, 5.0), width_ratios=(3, 1), layout="constrained", sharey=True
    )
    top = max(1, numpy.quantile(table, 0.995))
    image = axes.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    axes.set(xlabel="layer", ylabel=f"{len(rows)} languages, most neurons first", title="Neurons by language and layer")
    axes.set_xticks(range(0, table.shape[1], max(1, table.shape[1] // 9)))
    figure.colorbar(image, ax=axes, label="neurons", extend="max", location="left", shrink=0.6)
    total.plot(table.sum(1), range(len(rows)), color=AFTER, linewidth=2)
    total.set(xlabel="neurons", title="in all layers", xlim=(0, None))
    for part in (axes, total):
        part.set_yticks([])
    axes.grid(visible=False)
    return figure


def clustered_overlap(neurons: NeuronSets, label_every: int = 0) -> Figure:
    """Draws the Jaccard index of every two languages, ordered by average linkage, with bars of family and script.

    Args:
        neurons: Neuron sets; languages without neurons are left out.
        label_every: Write every n-th language's name; 0 writes all when there are at most 60.
    """
    codes = [code for code in neurons if neurons.count(code)]
    rows = [neurons.languages.index(code) for code in codes]
    distances = jaccard_distances(neurons)[numpy.ix_(rows, rows)]
    order = hierarchy.leaves_list(average_linkage(distances))
    languages = [get_language(codes[i]) for i in order]
    overlap = 1 - distances[numpy.ix_(order, order)]
    numpy.fill_diagonal(overlap, numpy.nan)
    bars = {"family": [x.lineage[0] for x in languages], "script": [x.script for x in languages]}
    style()
    figure, (strip, axes) = plt.subplots(
        1, 2, figsize=(WIDTH, WIDTH), width_ratios=(1, 22), layout="constrained", sharey=True
    )
    palettes = {"family": _colours(bars["family"]), "script": _colours(bars["script"], "Dark2")}
    colours = [[to_rgb(palettes[name].get(label, _OTHER)) for label in labels] for name, labels in bars.items()]
    strip.imshow(numpy.array(colours).swapaxes(0, 1), aspect="auto", interpolation="nearest")
    strip.set_xticks(range(len(bars)), list(bars), rotation=90)
    image = axes.imshow(
        overlap, cmap=SEQUENTIAL, vmin=0, vmax=numpy.nanquantile(overlap, 0.998), aspect="auto", interpolation="nearest"
    )
    every = label_every or (1 if len(codes) <= 60 else 0)
    places = range(0, len(codes), every) if every else []
    strip.set_yticks(list(places), [languages[i].name for i in places], fontsize=7)
    axes.set_xticks([])
    for part in (strip, axes):
        part.grid(visible=False)
    figure.colorbar(image, ax=axes, label="Jaccard", shrink=0.5, location="bottom", pad=0.01)
    axes.set_title(f"Overlap of the neuron sets of {len(codes)} languages")
    for place, (name, palette) in zip(("outside right upper", "outside right center"), palettes.items(), strict=True):
        handles = [Patch(color=colour, label=label) for label, colour in [*palette.items(), ("others", _OTHER)]]
        figure.legend(handles=handles, title=name, loc=place, fontsize=8, frameon=False)
    return figure


def neurons_against(languages: Mapping, facts: Sequence[str], correlates: Mapping, rate: str = "5") -> Figure:
    """Draws the number of neurons of each language against facts about it, with the rank correlation in the title.

    Args:
        languages: `languages` of languages.json.
        facts: Names of facts, such as "tokens_per_byte".
        correlates: correlates.json.
        rate: "1" or "5", percent of all neurons selected.
    """
    style()
    figure, panels = plt.subplots(1, len(facts), figsize=(WIDTH, 3.2), layout="constrained", sharey=True, squeeze=False)
    for axes, fact in zip(panels[0], facts, strict=True):
        pairs = [(x[fact], x["neurons"][rate]) for x in languages.values() if x[fact] is not None]
        axes.plot(*zip(*pairs, strict=True), "o", markersize=3, alpha=0.5, color=AFTER)
        test = correlates[rate][fact]
        axes.set_title(f"rho {with_interval(test['rho'], test['low'], test['high'], 2, '')}", fontsize=10)
        axes.set_xlabel(_FACT_LABELS[fact])
        low, high = min(x for x, _ in pairs), max(x for x, _ in pairs)
        if low > 0 and 8 * low < high < 1000 * low:
            axes.set_xscale("log")
            axes.set_xticks([x for x in (1, 2, 5, 10, 20, 50) if low <= x <= high])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        if high > 20 * (1 + low):
            axes.set_xscale("symlog")
            axes.set_xticks([0, 100, 10_000, 1_000_000], ["0", "100", "10k", "1M"])
            axes.minorticks_off()
    panels[0, 0].set_ylabel("neurons")
    return figure


def selections(results: Mapping, rate: str = "5") -> Axes:
    """Draws, for each language, the overlap of its sets when they are selected among few and many languages.

    Args:
        results: selections.json.
        rate: "1" or "5", percent of all neurons selected.
    """
    style()
    axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")[1]
    pairs = {"13/50": "13 and 50", "50/all": "50 and all", "13/all": "13 and all"}
    codes = results["groups"]["13"].split()
    for offset, (colour, (pair, label)) in enumerate(zip(PALETTE, pairs.items(), strict=False)):
        rows = [results["jaccard"][rate][pair][code] for code in codes]
        places = numpy.arange(len(codes)) + 0.2 * (offset - 1)
        axes.plot(places, [x["jaccard"] for x in rows], "o", color=colour, label=f"{label} languages")
        axes.vlines(places, [x["low"] for x in rows], [x["high"] for x in rows], color=colour)
    axes.set_xticks(range(len(codes)), [get_language(code).name for code in codes], rotation=45, ha="right")
    axes.set(ylabel="Jaccard", ylim=(0, 1), title="The same language's set in two selections")
    axes.legend(frameon=False, ncols=3, fontsize=9)
    return axes


def stability(few: Mapping, more: Mapping) -> Figure:
    """Draws split-half agreement against the tokens in each half: the median over languages and the middle 80%.

    Args:
        few: stability.json (all languages).
        more: more_text.json (the languages with more text).
    """
    style()
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.8), layout="constrained", sharey=True)
    for axes, rate in zip(panels, ("5", "1"), strict=True):
        for colour, results in zip((AFTER, ACCENT), (few, more), strict=True):
            rows = [
                [x["jaccard"] for lang, x in by_language.items() if lang != "mean" and x["jaccard"] is not None]
                for by_language in results[rate].values()
            ]
            low, middle, high = zip(*(numpy.quantile(x, (0.1, 0.5, 0.9)) for x in rows), strict=True)
            tokens = [int(x) for x in results[rate]]
            languages = len(next(iter(results[rate].values())).keys() - {"mean"})
            axes.plot(tokens, middle, "o-", color=colour, label=f"{languages} languages")
            axes.fill_between(tokens, low, high, color=colour, alpha=0.15)
        axes.set(xlabel="tokens in each half", ylim=(0, 1), xscale="log", title=f"{rate}% of the neurons")
        axes.set_xticks(tokens, [f"{x:,}" for x in tokens], fontsize=9)
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")
    panels[0].set_ylabel("Jaccard of two halves")
    return figure


def genres(results: Mapping, rate: str = "5") -> Axes:
    """Draws, for each language, the agreement across genres against the agreement of two halves of one genre.

    Args:
        results: kinds.json.
        rate: "1" or "5", percent of all neurons selected.
    """
    style()
    axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")[1]
    rows = [x for lang, x in results[rate].items() if lang != "mean" and None not in x.values()]
    ceiling = [(x["within_first"] * x["within_second"]) ** 0.5 for x in rows]
    axes.plot(ceiling, [x["across"] for x in rows], "o", markersize=4, alpha=0.6, color=AFTER)
    axes.plot([0, 1], [0, 1], color=RULE, linestyle=":", linewidth=1)
    axes.set(
        xlabel="two halves of one genre (geometric mean of both genres)",
        ylabel="declaration and messages",
        xlim=(0, 1),
        ylim=(0, 1),
        title="Does text of another genre select the same neurons?",
    )
    return axes


def language_map(languages: Mapping, labelled: Sequence[str] = ()) -> Axes:
    """Draws the two-dimensional map of overlaps: colours are families, triangles are scripts other than Latin.

    Args:
        languages: `languages` of languages.json.
        labelled: Codes of the languages whose names are written.
    """
    style()
    axes = plt.subplots(figsize=(WIDTH, 5.6), layout="constrained")[1]
    colours = _colours([x["stock"] for x in languages.values()])
    for stock, colour in [*colours.items(), (None, _OTHER)]:
        family = [x for x in languages.values() if (x["stock"] == stock if stock else x["stock"] not in colours)]
        for marker, latin in (("o", True), ("^", False)):
            places = numpy.array([x["map"] for x in family if (x["script"] == "Latn") == latin]).reshape(-1, 2)
            axes.plot(*places.T, marker, markersize=4.5, alpha=0.75, color=colour)
        axes.plot([], [], "s", color=colour, label=stock or "others")
    for marker, label in (("o", "Latin script"), ("^", "another script")):
        axes.plot([], [], marker, color="0.3", label=label)
    for code in labelled:
        name = axes.annotate(
            languages[code]["name"], languages[code]["map"], (3, 3), textcoords="offset points", fontsize=9
        )
        name.set_path_effects([withStroke(linewidth=2.5, foreground=axes.get_facecolor())])
    axes.set(xticks=[], yticks=[], title="Nearby languages share neurons (classical scaling)")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def effects(losses: Mapping) -> Axes:
    """Draws the loss added in language B (columns) by the set of A (rows) beyond A's controls.

    Args:
        losses: deactivation.json.
    """
    table = effect_table(losses)
    names = [get_language(code).name for code in table.index]
    style()
    axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")[1]
    shares = (table.clip(lower=0) / table.max()).set_axis(names, axis=0).set_axis(names, axis=1)
    seaborn.heatmap(
        shares,
        ax=axes,
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
        square=True,
        xticklabels=True,
        yticklabels=True,
        linewidths=0.2,
        cbar_kws={"label": "share of the column's largest", "shrink": 0.5},
    )
    axes.set(
        xlabel="measured in",
        ylabel="set switched off",
        title="Loss added by switching off each set, beyond random neurons",
    )
    axes.tick_params(axis="x", rotation=90, labelsize=8)
    axes.tick_params(axis="y", rotation=0, labelsize=8)
    return axes


def specificity(results: Mapping) -> Axes:
    """Draws each set's specificity with its interval; sets that fail the test are drawn hollow, in another colour.

    Args:
        results: deactivation.json.
    """
    rows = sorted(results["specificity"].items(), key=lambda item: item[1]["specificity"])
    style()
    axes = plt.subplots(figsize=(WIDTH, 0.24 * len(rows) + 1), layout="constrained")[1]
    for place, (_, x) in enumerate(rows):
        colour = ACCENT if x["fails"] else AFTER
        axes.hlines(place, x["low"], x["high"], color=colour, linewidth=1.4)
        axes.plot(x["specificity"], place, "o", color=colour, markerfacecolor="white" if x["fails"] else colour)
    axes.axvline(0, color=RULE, linewidth=1)
    names = [
        get_language(code).name + (f" (larger effect: {get_language(x['worst']).name})" if x["worst"] != code else "")
        for code, x in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_xlabel("added loss: own language minus median of others (nats per token)")
    axes.set_title("Specificity of each language's set; hollow: fails the test")
    return axes
