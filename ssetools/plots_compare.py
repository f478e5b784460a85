"""The figures of the comparison: gain against retention, the search for rates, differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas
import seaborn
from matplotlib.figure import Figure

from ssetools.effects import differences, effects
from ssetools.languages import get_language
from ssetools.plots import WIDTH, style

_MARKERS = dict(
    zip(["lape", "random", "random-uniform", "lora", "lora-equal", "ia3", "ffn", "full"], "o^vsDPX*", strict=True)
)


def _look(method: str) -> tuple:
    names = list(_MARKERS)
    return seaborn.color_palette("colorblind", len(names))[names.index(method)], _MARKERS[method]


def _panels(languages: Sequence[str], height: float, **options):
    style()
    figure, panels = plt.subplots(
        1, len(languages), figsize=(WIDTH, height), layout="constrained", squeeze=False, **options
    )
    for axes, lang in zip(panels[0], languages, strict=True):
        axes.set_title(get_language(lang).name)
    return figure, panels[0]


def plane(found: Mapping[str, tuple], gain: str = "target, sentences", kept: str = "others, sentences") -> Figure:
    """Draws gain against retention: every method, its interval, and each of its seeds as a small mark.

    Args:
        found: By language, the scored runs and the bases' scores.
        gain: Measure on the horizontal axis; a name of `effects.measures`.
        kept: Measure on the vertical axis.
    """
    figure, panels = _panels(list(found), 4.4)
    for axes, (lang, (runs, bases)) in zip(panels, found.items(), strict=True):
        table = effects(runs, bases, lang).set_index(["method", "measure"])
        for method in table.index.unique(0):
            colour, marker = _look(method)
            x, y = table.loc[(method, gain)], table.loc[(method, kept)]
            axes.errorbar(
                x.value,
                y.value,
                [[y.value - y.low], [y.high - y.value]],
                [[x.value - x.low], [x.high - x.value]],
                fmt=marker,
                color=colour,
                markersize=8,
                elinewidth=1,
                label=method,
            )
            for seed in {run["arm"]["seed"] for run in runs}:
                one = [r for r in runs if r["arm"]["method"] == method and r["arm"]["seed"] == seed]
                if one:
                    at = effects(one, bases, lang).set_index("measure").value
                    axes.plot(at[gain], at[kept], marker, color=colour, markersize=3, alpha=0.7)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set_xlabel(_label(gain, lang))
    panels[0].set_ylabel(_label(kept, "en"))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _label(measure: str, lang: str) -> str:
    if measure == "drift":
        return "drift from the base (nats per token)"
    who, kind = measure.split(", ")
    name = {"target": get_language(lang).name, "English": "English", "others": "other languages"}[who]
    return f"{name}, {kind}:\nchange of perplexity (%)"


def search(found: Mapping[str, pandas.DataFrame]) -> Figure:
    """Draws the search: validation loss at each rate of each method's grid, as the distance from the best of all.

    Args:
        found: By language, the table of `Comparison.searched`.
    """
    figure, panels = _panels(list(found), 3.6, sharey=True)
    for axes, table in zip(panels, found.values(), strict=True):
        floor = table.validation_loss.min()
        for method, part in table.groupby("method", sort=False):
            colour, marker = _look(method)
            part = part.sort_values("learning_rate")
            axes.plot(part.learning_rate, part.validation_loss - floor, color=colour, marker=marker, label=method)
        axes.set(xscale="log", xlabel="peak learning rate")
    panels[0].set_ylabel("validation loss above the best (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def distance(found: Mapping[str, tuple], measure: str = "target, sentences", to: str = "lape") -> Figure:
    """Draws each method's paired difference to one of them, with its interval; left of the line is better.

    Args:
        found: By language, the scored runs and the bases' scores.
        measure: A name of `effects.measures`.
        to: The method to compare with.
    """
    figure, panels = _panels(list(found), 3.2, sharey=True)
    for axes, (lang, (runs, bases)) in zip(panels, found.items(), strict=True):
        table = differences(runs, bases, lang, to)
        table = table[table.measure == measure].reset_index(drop=True)
        for place, row in table.iterrows():
            colour, marker = _look(row.method)
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6)
            axes.plot(row.value, place, marker, color=colour)
        axes.axvline(0, color="0.3", linewidth=1)
        axes.set_yticks(range(len(table)), table.method)
        axes.margins(y=0.1)
        axes.set_xlabel("nats per token" if measure == "drift" else "perplexity (%)")
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{measure[0].upper()}{measure[1:]}: difference to {to} (left is better)", fontsize=11, x=0.01, ha="left"
    )
    return figure
