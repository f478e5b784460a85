"""Figures of the comparison: gain against retention, rate search, differences, training curves, ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.languages import get_language
from ssetools.plots import PALETTE, RULE, WIDTH, style
from study.compare.effects import (
    by_method,
    changes,
    mean_over_languages,
    other_languages,
    paired_differences,
    values_by_unit,
)
from study.compare.results import CONTROL, LanguageResults
from study.compare.runs import ABLATIONS, RunSettings

STYLES = dict(
    zip(
        ("lape", "random", "random-uniform", "lora", "lora-equal", "ia3", "ffn", "full"),
        zip(PALETTE, "o^vsDPX*", strict=True),
        strict=True,
    )
)
"""Colour and marker of each method, the same in every figure."""
_MAX_CHANGE, _MAX_LOSS_ABOVE_BEST = 10, 0.5  # limits of axes, in percent and in nats
_SEED_MARKER = {"markersize": 3, "alpha": 0.7}


def _panels(languages: Sequence[str], height: float, **options) -> tuple[Figure, numpy.ndarray]:
    style()
    figure, panels = plt.subplots(
        1, len(languages), figsize=(WIDTH, height), layout="constrained", squeeze=False, **options
    )
    for axes, lang in zip(panels[0], languages, strict=True):
        axes.set_title(get_language(lang).name)
    return figure, panels[0]


def _legend(figure: Figure) -> None:
    """Adds one legend for all panels below them, in the order of the methods."""
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [method for method in STYLES if method in handles]
    figure.legend([handles[x] for x in labels], labels, loc="outside lower center", ncols=4, frameon=False)


def gain_against_retention(
    results: Mapping[str, LanguageResults], gain: str = "target, sentences", retention: str = "others, sentences"
) -> Figure:
    """Draws gain against retention: every method with its intervals, and each of its seeds as a small marker.

    Args:
        results: Results by language.
        gain: Measure on the horizontal axis, one of `effects.MEASURES`.
        retention: Measure on the vertical axis.
    """
    figure, panels = _panels(list(results), 4.4)
    for axes, (lang, of_language) in zip(panels, results.items(), strict=True):
        table = changes(*of_language.runs_and_bases, lang).set_index(["method", "measure"])
        for method, runs in by_method(of_language.runs).items():
            colour, marker = STYLES[method]
            x, y = table.loc[(method, gain)], table.loc[(method, retention)]
            errors = [[[row.value - row.low], [row.high - row.value]] for row in (y, x)]
            axes.errorbar(x.value, y.value, *errors, marker, color=colour, markersize=8, elinewidth=1, label=method)
            for run in runs:
                of_seed = changes([run], of_language.bases, lang).set_index("measure").value
                axes.plot(of_seed[gain], of_seed[retention], marker, color=colour, **_SEED_MARKER)
        axes.axvline(0, color=RULE, linewidth=0.8)
        axes.axhline(0, color=RULE, linewidth=0.8)
        axes.set_xlabel(_axis_label(gain, lang))
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel(_axis_label(retention, "en"))
    _legend(figure)
    return figure


def gain_against_drift(results: Mapping[str, LanguageResults], gain: str = "target, sentences") -> Figure:
    """Draws gain against drift (logarithmic): a line through the rates of each method, one seed, the chosen rate circled.

    Rates that increase the language's own perplexity by more than `_MAX_CHANGE` percent are outside the axes.

    Args:
        results: Results by language.
        gain: Measure on the horizontal axis, one of `effects.MEASURES`.
    """
    with_rates = {lang: x for lang, x in results.items() if x.by_rate}
    if not with_rates:
        return plt.figure(figsize=(WIDTH, 0.1))  # every language uses the rates of others
    figure, panels = _panels(list(with_rates), 4.4)
    for axes, (lang, of_language) in zip(panels, with_rates.items(), strict=True):
        chosen = {run["settings"]["method"]: run["settings"]["learning_rate"] for run in of_language.runs}
        for method, runs in of_language.by_rate.items():
            colour, marker = STYLES[method]
            points = [changes([run], of_language.bases, lang).set_index("measure").value for run in runs]
            gains, drifts = [x[gain] for x in points], [x["drift"] for x in points]
            axes.plot(gains, drifts, color=colour, marker=marker, label=method)
            for x, y, run in zip(gains, drifts, runs, strict=True):
                if run["settings"]["learning_rate"] == chosen.get(method):
                    _circle(axes, x, y, colour)
        shown = [(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if x <= _MAX_CHANGE]
        gains, drifts = zip(*shown, strict=True)
        axes.set_xlim(min(gains) - 2, min(max(gains) + 2, _MAX_CHANGE))
        axes.set_ylim(min(drifts) / 1.6, max(drifts) * 1.6)
        axes.axvline(0, color=RULE, linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel(_axis_label(gain, lang))
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel(_axis_label("drift", "en"))
    _legend(figure)
    return figure


def _circle(axes: Axes, x, y, colour) -> None:
    axes.plot(x, y, "o", markersize=14, mfc="none", mec=colour, mew=1.4)


def _axis_label(measure: str, lang: str) -> str:
    if measure == "drift":
        return "drift from the base (nats per token)"
    who, genre = measure.split(", ")
    name = {"target": get_language(lang).name, "English": "English", "others": "other languages"}[who]
    return f"{name}, {genre}:\nchange of perplexity (%)"


def rate_search(results: Mapping[str, LanguageResults]) -> Figure:
    """Draws the validation loss at each rate of each method's grid, above the lowest of all; chosen rates are circled."""
    searches = {lang: x.search for lang, x in results.items() if len(x.search)}
    if not searches:
        return plt.figure(figsize=(WIDTH, 0.1))  # every language uses the rates of others
    figure, panels = _panels(list(searches), 4.0, sharey=True)
    for axes, search in zip(panels, searches.values(), strict=True):
        search = search.assign(above_best=search.validation_loss - search.validation_loss.min())
        for method, rows in search.groupby("method", sort=False):
            colour, marker = STYLES[method]
            axes.plot(rows.learning_rate, rows.above_best, color=colour, marker=marker, label=method)
            chosen = rows[rows.chosen]
            _circle(axes, chosen.learning_rate, chosen.above_best, colour)
        axes.set(xscale="log", xlabel="peak learning rate")
        axes.margins(0.1)
    # Rates that are far too high would otherwise compress all other differences.
    panels[0].set_ylim(-0.03, min(_MAX_LOSS_ABOVE_BEST, panels[0].get_ylim()[1]))
    panels[0].set_ylabel("validation loss,\nabove the best (nats)")
    _legend(figure)
    return figure


def differences(
    results: Mapping[str, LanguageResults], measure: str = "target, sentences", reference: str = "lape"
) -> Figure:
    """Draws each method's paired difference from the reference, with its interval; negative values are better.

    Args:
        results: Results by language.
        measure: One of `effects.MEASURES`.
        reference: The method with which the others are compared.
    """
    figure, panels = _panels(list(results), 3.2, sharey=True)
    methods = [method for method in STYLES if method != reference]
    for axes, (lang, of_language) in zip(panels, results.items(), strict=True):
        table = paired_differences(*of_language.runs_and_bases, lang, reference).query("measure == @measure")
        for row in table.itertuples():
            colour, marker = STYLES[row.method]
            place = methods.index(row.method)
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6)
            axes.plot(row.value, place, marker, color=colour, markersize=7)
        axes.axvline(0, color=RULE, linewidth=1)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel("nats per token" if measure == "drift" else "perplexity (%)")
        axes.locator_params(axis="x", nbins=4)
    title = f"{measure[0].upper()}{measure[1:]}: difference from {reference} (negative is better)"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def training_curves(results: LanguageResults, steps: pandas.DataFrame) -> Figure:
    """Draws the loss on training text (above) and on validation text (below) against tokens and against seconds.

    Lines are means over seeds. The training loss is smoothed, since every batch is different text.

    Args:
        results: Results of one language.
        steps: From `results.step_costs`; if it is empty, the panels over seconds are left out.
    """
    style()
    axis_labels = {"tokens": "thousand training tokens"} | ({"seconds": "seconds of training"} if len(steps) else {})
    figure, panels = plt.subplots(
        2, len(axis_labels), figsize=(WIDTH, 5.6), layout="constrained", squeeze=False, sharey="row", sharex="col"
    )
    for method, runs in by_method(results.runs).items():
        colour, marker = STYLES[method]
        history = pandas.concat([pandas.DataFrame(run["history"]) for run in runs])
        mean = history.groupby("tokens")[["loss", "validation_loss"]].mean()
        validation = mean.validation_loss.dropna()
        for (training_axes, validation_axes), unit in zip(panels.T, axis_labels, strict=True):
            if unit == "seconds" and method not in steps.index:
                continue
            scale = steps.seconds_per_token[method] if unit == "seconds" else 1e-3
            smoothed = mean.loss.ewm(span=8).mean()
            training_axes.plot(mean.index * scale, smoothed, color=colour, linewidth=1.4, label=method)
            validation_axes.plot(
                validation.index * scale, validation, color=colour, marker=marker, markersize=5, label=method
            )
    panels[0, 0].set(ylabel="training loss (nats)", title=get_language(results.lang).name)
    panels[1, 0].set(ylabel="validation loss (nats)")
    for axes, label in zip(panels[1], axis_labels.values(), strict=True):
        axes.set_xlabel(label)
    _legend(figure)
    return figure


def ablations(results: LanguageResults) -> Figure:
    """Draws the gain (above) and the change in other languages (below) over the settings that the ablations vary.

    `lape` and its control of equal size, one seed; intervals are over text only.
    """
    style()
    measures = ("target, sentences", "others, sentences")
    figure, panels = plt.subplots(
        2, 3, figsize=(WIDTH + 1, 5.4), layout="constrained", sharey="row", sharex="col", width_ratios=(4, 4, 3)
    )
    for shift, method in ((-0.06, "lape"), (0.06, CONTROL)):
        colour, marker = STYLES[method]
        for column, (places, runs) in zip(panels.T, _runs_by_setting(results.ablations, method), strict=True):
            tables = [changes([run], results.bases, results.lang).set_index("measure") for run in runs]
            for axes, measure in zip(column, measures, strict=True):
                rows = pandas.DataFrame([table.loc[measure] for table in tables])
                if len(rows):
                    x = numpy.array(places) + shift
                    errors = [rows.value - rows.low, rows.high - rows.value]
                    axes.errorbar(x, rows.value, errors, fmt=marker + "-", color=colour, elinewidth=1, label=method)
    for axes, who in zip(panels[:, 0], (get_language(results.lang).name, "other languages"), strict=True):
        axes.set_ylabel(f"{who},\nsentences (%)")
    columns = {
        "share of all neurons selected\n(weights trained)": lambda run: (
            f"{100 * run['settings']['top_rate']:g}%{_size(run)}"
        ),
        "training tokens": lambda run: f"{run['settings']['max_tokens']:,}",
        "selection of neurons\n(weights trained)": lambda run: (
            ("own budget" if run["settings"]["budget"] else "pooled") + _size(run)
        ),
    }
    by_setting = _runs_by_setting(results.ablations, "lape")
    for column, (title, label), (places, runs) in zip(panels.T, columns.items(), by_setting, strict=True):
        column[1].set_xticks(places, [label(run) for run in runs], fontsize=9)
        column[1].set_xlabel(title)
        column[1].margins(x=0.12)
        for axes in column:
            axes.axhline(0, color=RULE, linewidth=0.8)
    panels[0, 0].set_title(f"{get_language(results.lang).name}: change of perplexity at the rate of lape, one seed")
    _legend(figure)
    return figure


def _runs_by_setting(runs: Sequence[Mapping], method: str) -> list[tuple[list[int], list[Mapping]]]:
    """Returns, for each field of `ABLATIONS`, the places of its values on an axis and the runs that vary only this field."""
    with_settings = [(RunSettings(**run["settings"]), run) for run in runs if run["settings"]["method"] == method]
    columns = []
    for field, values in ABLATIONS.items():
        fixed = [x for x in ABLATIONS if x != field]
        varied = {
            values.index(getattr(settings, field)): run
            for settings, run in with_settings
            if all(getattr(settings, x) == getattr(RunSettings, x) for x in fixed)
        }
        columns.append((sorted(varied), [varied[place] for place in sorted(varied)]))
    return columns


def _size(run: Mapping) -> str:
    return f"\n({run['parameters'] / 1e6:.2f}M)"


def other_language_changes(results: LanguageResults, measure: str = "others, sentences") -> Axes:
    """Draws the change in each other language by method, averaged over seeds; orange is worse, purple better.

    Args:
        results: Results of one language.
        measure: "others, sentences" or "others, articles".
    """
    style()
    rows = {}
    for method, runs in by_method(results.runs).items():
        mean = values_by_unit(runs, results.bases, results.lang, measure)[0].mean(0)
        codes = other_languages(runs[0], results.lang, measure.split(", ")[1])
        rows[method] = {code: 100 * math.expm1(x) for code, x in zip(codes, mean.tolist(), strict=True)}
    values = pandas.DataFrame.from_dict(rows, orient="index").reindex([x for x in STYLES if x in rows])
    name = get_language(results.lang).name
    title = f"{name} trained: change of perplexity in other languages (%)"
    return _heat_map(values, values.map(lambda x: str(round(x))), title, fontsize=7)


def differences_by_language(
    results: Mapping[str, LanguageResults], measure: str = "target, sentences", reference: str = "lape"
) -> Axes:
    """Draws the paired difference of every method from the reference, in every language and in their mean.

    Orange is worse than the reference, purple better. A star marks an interval that excludes zero, where there are several
    seeds; the interval of the mean is over languages.

    Args:
        results: Results by language.
        measure: One of `effects.MEASURES`.
        reference: The method with which the others are compared.
    """
    style()
    tables = {
        get_language(lang).name: paired_differences(*x.runs_and_bases, lang, reference) for lang, x in results.items()
    }
    tables["mean"] = mean_over_languages({lang: x.runs_and_bases for lang, x in results.items()}, reference)
    table = pandas.concat(tables, names=["language", None]).query("measure == @measure").reset_index("language")
    significant = (table.low * table.high > 0) & ((table.seeds > 1) | (table.language == "mean"))
    table["text"] = [f"{x:+z.1f}{'*' if star else ''}" for x, star in zip(table.value, significant, strict=True)]
    columns = [method for method in STYLES if method in set(table.method)]
    values, texts = (
        table.pivot(index="language", columns="method", values=name).reindex(index=list(tables), columns=columns)
        for name in ("value", "text")
    )
    title = f"{measure[0].upper()}{measure[1:]}: perplexity relative to {reference} (%)"
    axes = _heat_map(values, texts.fillna(""), title, fontsize=9)
    axes.axhline(len(values) - 1, color=RULE, linewidth=1.5)
    plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return axes


def _heat_map(values: pandas.DataFrame, texts: pandas.DataFrame, title: str, fontsize: int) -> Axes:
    axes = plt.subplots(figsize=(WIDTH, 0.34 * len(values) + 1.5), layout="constrained")[1]
    limit = float(numpy.nanquantile(values.abs(), 0.9))
    options = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit, "linewidths": 0.5, "annot_kws": {"fontsize": fontsize}}
    seaborn.heatmap(values, ax=axes, annot=texts, fmt="", cbar_kws={"label": "%"}, **options)
    axes.set(xlabel="", ylabel="", title=title)
    axes.tick_params(axis="both", rotation=0)
    return axes
