"""The figures of the atlas: overlaps with families and scripts, stability, the map, and sets switched off."""

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

from ssetools.evaluation.intervals import with_interval
from ssetools.languages import get_language
from ssetools.neurons.sets import NeuronSets
from ssetools.plots import ACCENT, AFTER, BEFORE, PALETTE, RULE, SEQUENTIAL, WIDTH, style
from study.atlas.effects import effect_table
from study.atlas.statistics import average_linkage, distances, leaf_order

_OTHER = "#c9ced6"
_BASE, _STRONG, _WEAK = BEFORE, AFTER, ACCENT
_FACTS = {
    "tokens_per_byte": "tokens per byte",
    "tokens_per_word": "tokens per word",
    "nats_per_token": "loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "wikipedia_articles": "Wikipedia articles",
}


def _colours(labels: Sequence[str], palette: str = "tab10") -> dict[str, str]:
    """Gives the commonest labels a colour each; the others, and they alone, are grey."""
    colours = [x for x in seaborn.color_palette(palette) if max(x) - min(x) > 0.05]
    common = pandas.Series(list(labels)).value_counts().index
    return dict(zip(common, map(to_hex, colours), strict=False))


def neurons_by_layer(neurons: NeuronSets) -> Figure:
    """Draws how many neurons each language has in each layer (left) and in all (right), the most at the top."""
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
    total.plot(table.sum(1), range(len(rows)), color=_STRONG, linewidth=2)
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
    table = distances(neurons)[rows][:, rows]
    order = leaf_order(average_linkage(table))
    codes = [codes[i] for i in order]
    shown = 1 - table[order][:, order]
    numpy.fill_diagonal(shown, numpy.nan)
    known = [get_language(code) for code in codes]
    bars = {"family": [x.lineage[0] for x in known], "script": [x.script for x in known]}
    style()
    figure, (strip, axes) = plt.subplots(
        1, 2, figsize=(WIDTH, WIDTH), width_ratios=(1, 22), layout="constrained", sharey=True
    )
    palettes = {"family": _colours(bars["family"]), "script": _colours(bars["script"], "Dark2")}
    colours = [[to_rgb(palettes[name].get(label, _OTHER)) for name, labels in bars.items() for label in [labels[i]]]
               for i in range(len(codes))]  # fmt: skip
    strip.imshow(numpy.array(colours), aspect="auto", interpolation="nearest")
    strip.set_xticks(range(len(bars)), list(bars), rotation=90)
    image = axes.imshow(
        shown, cmap=SEQUENTIAL, vmin=0, vmax=numpy.nanquantile(shown, 0.998), aspect="auto", interpolation="nearest"
    )
    every = label_every or (1 if len(codes) <= 60 else 0)
    places = range(0, len(codes), every) if every else []
    strip.set_yticks(list(places), [known[i].name for i in places], fontsize=7)
    axes.set_xticks([])
    for part in (strip, axes):
        part.grid(visible=False)
    figure.colorbar(image, ax=axes, label="Jaccard", shrink=0.5, location="bottom", pad=0.01)
    axes.set_title(f"Overlap of the neuron sets of {len(codes)} languages")
    for place, (name, palette) in zip(("outside right upper", "outside right center"), palettes.items(), strict=True):
        handles = [Patch(color=colour, label=label) for label, colour in [*palette.items(), ("others", _OTHER)]]
        figure.legend(handles=handles, title=name, loc=place, fontsize=8, frameon=False)
    return figure


def neurons_against(about: Mapping, facts: Sequence[str], found: Mapping, rate: str = "5") -> Figure:
    """Draws the number of neurons of each language against facts about it, with the rank correlation in the title.

    Args:
        about: `languages` of languages.json.
        facts: Names of facts, such as "tokens_per_byte".
        found: correlates.json.
        rate: "1" or "5", percent of all neurons selected.
    """
    style()
    figure, panels = plt.subplots(1, len(facts), figsize=(WIDTH, 3.2), layout="constrained", sharey=True, squeeze=False)
    for axes, fact in zip(panels[0], facts, strict=True):
        pairs = [(x[fact], x["neurons"][rate]) for x in about.values() if x[fact] is not None]
        axes.plot(*zip(*pairs, strict=True), "o", markersize=3, alpha=0.5, color=_STRONG)
        one = found[rate][fact]
        axes.set_title(f"rho {with_interval(one['rho'], one['low'], one['high'], 2, '')}", fontsize=10)
        axes.set_xlabel(_FACTS[fact])
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


def selections(found: Mapping, rate: str = "5") -> Axes:
    """Draws, for each language, how much of its set stays when more languages are profiled beside it."""
    style()
    axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")[1]
    pairs = {"13/50": "13 and 50", "50/all": "50 and all", "13/all": "13 and all"}
    codes = found["groups"]["13"].split()
    for offset, (colour, (pair, label)) in enumerate(zip(PALETTE, pairs.items(), strict=False)):
        rows = [found["jaccard"][rate][pair][code] for code in codes]
        places = numpy.arange(len(codes)) + 0.2 * (offset - 1)
        axes.plot(places, [x["jaccard"] for x in rows], "o", color=colour, label=f"{label} languages")
        axes.vlines(places, [x["low"] for x in rows], [x["high"] for x in rows], color=colour)
    axes.set_xticks(range(len(codes)), [get_language(code).name for code in codes], rotation=45, ha="right")
    axes.set(ylabel="Jaccard", ylim=(0, 1), title="The same language's set in two selections")
    axes.legend(frameon=False, ncols=3, fontsize=9)
    return axes


def stability(few: Mapping, more: Mapping) -> Figure:
    """Draws split-half agreement against the tokens in each half: the median language and the middle 80%.

    Args:
        few: stability.json, of all languages.
        more: more_text.json, of some languages with more text.
    """
    style()
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.8), layout="constrained", sharey=True)
    for axes, rate in zip(panels, ("5", "1"), strict=True):
        for colour, found in zip((_STRONG, _WEAK), (few, more), strict=True):
            rows = [[x["jaccard"] for lang, x in part.items() if lang != "mean" and x["jaccard"] is not None]
                    for part in found[rate].values()]  # fmt: skip
            low, middle, high = zip(*(numpy.quantile(x, (0.1, 0.5, 0.9)) for x in rows), strict=True)
            tokens = [int(x) for x in found[rate]]
            languages = len(next(iter(found[rate].values()))) - 1  # "mean" is not one
            axes.plot(tokens, middle, "o-", color=colour, label=f"{languages} languages")
            axes.fill_between(tokens, low, high, color=colour, alpha=0.15)
        axes.set(xlabel="tokens in each half", ylim=(0, 1), xscale="log", title=f"{rate}% of the neurons")
        axes.set_xticks(tokens, [f"{x:,}" for x in tokens], fontsize=9)
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")
    panels[0].set_ylabel("Jaccard of two halves")
    return figure


def kinds(found: Mapping, rate: str = "5") -> Axes:
    """Draws, for each language, the agreement between declaration and messages against the ceiling: two halves of one."""
    style()
    axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")[1]
    rows = [x for lang, x in found[rate].items() if lang != "mean" and None not in x.values()]
    ceiling = [(x["within_first"] * x["within_second"]) ** 0.5 for x in rows]
    axes.plot(ceiling, [x["across"] for x in rows], "o", markersize=4, alpha=0.6, color=_STRONG)
    axes.plot([0, 1], [0, 1], color=RULE, linestyle=":", linewidth=1)
    axes.set(
        xlabel="two halves of one kind (geometric mean of both kinds)",
        ylabel="declaration and messages",
        xlim=(0, 1),
        ylim=(0, 1),
        title="Does another kind of text find the same neurons?",
    )
    return axes


def language_map(about: Mapping, labelled: Sequence[str] = ()) -> Axes:
    """Draws the two-dimensional map of overlaps: colours are families, and triangles are scripts other than Latin."""
    style()
    axes = plt.subplots(figsize=(WIDTH, 5.6), layout="constrained")[1]
    colours = _colours([x["stock"] for x in about.values()])
    for stock, colour in [*colours.items(), (None, _OTHER)]:
        family = [x for x in about.values() if (x["stock"] == stock if stock else x["stock"] not in colours)]
        for marker, latin in (("o", True), ("^", False)):
            places = numpy.array([x["map"] for x in family if (x["script"] == "Latn") == latin]).reshape(-1, 2)
            axes.plot(*places.T, marker, markersize=4.5, alpha=0.75, color=colour)
        axes.plot([], [], "s", color=colour, label=stock or "others")
    for marker, label in (("o", "Latin script"), ("^", "another script")):
        axes.plot([], [], marker, color="0.3", label=label)
    for code in labelled:
        name = axes.annotate(about[code]["name"], about[code]["map"], (3, 3), textcoords="offset points", fontsize=9)
        name.set_path_effects([withStroke(linewidth=2.5, foreground=axes.get_facecolor())])
    axes.set(xticks=[], yticks=[], title="Languages near each other share neurons (classical scaling)")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def effects(found: Mapping) -> Axes:
    """Draws loss added to language B (columns) by the set of A (rows), less what A's control adds."""
    table = effect_table(found)
    names = [get_language(code).name for code in table.index]
    style()
    axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")[1]
    shares = (table / table.max()).clip(lower=0).set_axis(names, axis=0).set_axis(names, axis=1)
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
    axes.set(xlabel="measured in", ylabel="set switched off", title="Whose neurons are they?")
    axes.tick_params(axis="x", rotation=90, labelsize=8)
    axes.tick_params(axis="y", rotation=0, labelsize=8)
    return axes


def specificity(found: Mapping) -> Axes:
    """Draws each set's specificity with its interval; the sets that fail are hollow and red."""
    rows = sorted(found["specificity"].items(), key=lambda item: item[1]["specificity"])
    style()
    axes = plt.subplots(figsize=(WIDTH, 0.24 * len(rows) + 1), layout="constrained")[1]
    for place, (_, x) in enumerate(rows):
        colour = _WEAK if x["fails"] else _STRONG
        axes.hlines(place, x["low"], x["high"], color=colour, linewidth=1.4)
        axes.plot(x["specificity"], place, "o", color=colour, markerfacecolor="white" if x["fails"] else colour)
    axes.axvline(0, color=RULE, linewidth=1)
    names = [get_language(code).name + (f" (more harm: {get_language(x['worst']).name})" if x["worst"] != code else "")
             for code, x in rows]  # fmt: skip
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_xlabel("nats per token added to its own language, less the median other")
    axes.set_title("Specificity of each language's set; hollow: it fails")
    return axes
