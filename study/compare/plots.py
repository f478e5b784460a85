"""The figures of the comparison: gain against retention, the search for rates, differences, dynamics, ablations."""

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
from study.compare.effects import across_languages, by_method, differences, effects, other_languages, values_of
from study.compare.results import CONTROL, Findings
from study.compare.runs import ABLATIONS, Arm

LOOKS = dict(
    zip(
        ("lape", "random", "random-uniform", "lora", "lora-equal", "ia3", "ffn", "full"),
        zip(PALETTE, "o^vsDPX*", strict=True),
        strict=True,
    )
)
"""Colour and marker of each method, the same in every figure."""
_MOST_LOST, _WORST_SHOWN = 10, 0.5
_SMALL = {"markersize": 3, "alpha": 0.7}


def _panels(languages: Sequence[str], height: float, **options):
    style()
    figure, panels = plt.subplots(
        1, len(languages), figsize=(WIDTH, height), layout="constrained", squeeze=False, **options
    )
    for axes, lang in zip(panels[0], languages, strict=True):
        axes.set_title(get_language(lang).name)
    return figure, panels[0]


def _legend(figure: Figure) -> None:
    """One legend for all panels, in the order of the methods, under them."""
    named = {}
    for axes in figure.axes:
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [method for method in LOOKS if method in named]
    figure.legend([named[x] for x in labels], labels, loc="outside lower center", ncols=4, frameon=False)


def plane(found: Mapping[str, Findings], gain: str = "target, sentences", kept: str = "others, sentences") -> Figure:
    """Draws gain against retention: every method, its interval, and each of its seeds as a small mark.

    Args:
        found: Results by language.
        gain: Measure on the horizontal axis, one of `effects.MEASURES`.
        kept: Measure on the vertical axis.
    """
    figure, panels = _panels(list(found), 4.4)
    for axes, (lang, one) in zip(panels, found.items(), strict=True):
        table = effects(*one.pair, lang).set_index(["method", "measure"])
        for method, runs in by_method(one.runs).items():
            colour, marker = LOOKS[method]
            x, y = table.loc[(method, gain)], table.loc[(method, kept)]
            reach = [[[at.value - at.low], [at.high - at.value]] for at in (y, x)]
            axes.errorbar(x.value, y.value, *reach, marker, color=colour, markersize=8, elinewidth=1, label=method)
            for run in runs:
                at = effects([run], one.bases, lang).set_index("measure").value
                axes.plot(at[gain], at[kept], marker, color=colour, **_SMALL)
        axes.axvline(0, color=RULE, linewidth=0.8)
        axes.axhline(0, color=RULE, linewidth=0.8)
        axes.set_xlabel(_label(gain, lang))
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel(_label(kept, "en"))
    _legend(figure)
    return figure


def along_rates(found: Mapping[str, Findings], gain: str = "target, sentences") -> Figure:
    """Draws gain against drift at every rate of a method's grid: a line each, one seed, a ring at the chosen rate.

    Drift is on a logarithmic scale: from one end of a grid to the other it grows a thousandfold. Rates that make the
    language itself worse by more than `_MOST_LOST` percent lie outside; lines lead to them.

    Args:
        found: Results by language.
        gain: Measure on the horizontal axis, one of `effects.MEASURES`.
    """
    traced = {lang: one for lang, one in found.items() if one.traced}
    if not traced:
        return plt.figure(figsize=(WIDTH, 0.1))  # these languages took their rates from others
    figure, panels = _panels(list(traced), 4.4)
    for axes, (lang, one) in zip(panels, traced.items(), strict=True):
        chosen = {run["arm"]["method"]: run["arm"]["learning_rate"] for run in one.runs}
        for method, runs in one.traced.items():
            colour, marker = LOOKS[method]
            at = [effects([run], one.bases, lang).set_index("measure").value for run in runs]
            axes.plot([x[gain] for x in at], [x["drift"] for x in at], color=colour, marker=marker, label=method)
            for x, run in zip(at, runs, strict=True):
                if run["arm"]["learning_rate"] == chosen.get(method):
                    _ring(axes, x[gain], x["drift"], colour)
        points = [(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if x <= _MOST_LOST]
        gains, drifts = zip(*points, strict=True)
        axes.set_xlim(min(gains) - 2, min(max(gains) + 2, _MOST_LOST))
        axes.set_ylim(min(drifts) / 1.6, max(drifts) * 1.6)
        axes.axvline(0, color=RULE, linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel(_label(gain, lang))
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel("drift from the base (nats per token)")
    _legend(figure)
    return figure


def _ring(axes: Axes, x, y, colour) -> None:
    """Marks what the search chose."""
    axes.plot(x, y, "o", markersize=14, mfc="none", mec=colour, mew=1.4)


def _label(measure: str, lang: str) -> str:
    if measure == "drift":
        return "drift from the base (nats per token)"
    who, kind = measure.split(", ")
    name = {"target": get_language(lang).name, "English": "English", "others": "other languages"}[who]
    return f"{name}, {kind}:\nchange of perplexity (%)"


def search(found: Mapping[str, Findings]) -> Figure:
    """Draws the search: validation loss at each rate of each method's grid, as the distance from the best of all.

    A ring marks the rate that was chosen.
    """
    searched = {lang: one.search for lang, one in found.items() if len(one.search)}
    if not searched:
        return plt.figure(figsize=(WIDTH, 0.1))  # these languages took their rates from others
    figure, panels = _panels(list(searched), 4.0, sharey=True)
    for axes, table in zip(panels, searched.values(), strict=True):
        above = table.assign(above=table.validation_loss - table.validation_loss.min())
        for method, part in above.groupby("method", sort=False):
            colour, marker = LOOKS[method]
            axes.plot(part.learning_rate, part.above, color=colour, marker=marker, label=method)
            chosen = part[part.chosen]
            _ring(axes, chosen.learning_rate, chosen.above, colour)
        axes.set(xscale="log", xlabel="peak learning rate")
        axes.margins(0.1)
    # A rate far too high is as useless at any height, and would press all others flat.
    panels[0].set_ylim(-0.03, min(_WORST_SHOWN, panels[0].get_ylim()[1]))
    panels[0].set_ylabel("validation loss,\nabove the best (nats)")
    _legend(figure)
    return figure


def distance(found: Mapping[str, Findings], measure: str = "target, sentences", to: str = "lape") -> Figure:
    """Draws each method's paired difference to one of them, with its interval; left of the line is better.

    Args:
        found: Results by language.
        measure: One of `effects.MEASURES`.
        to: The method to compare with.
    """
    figure, panels = _panels(list(found), 3.2, sharey=True)
    methods = [method for method in LOOKS if method != to]
    for axes, (lang, one) in zip(panels, found.items(), strict=True):
        table = differences(*one.pair, lang, to).query("measure == @measure")
        for row in table.itertuples():
            colour, marker = LOOKS[row.method]
            place = methods.index(row.method)
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6)
            axes.plot(row.value, place, marker, color=colour, markersize=7)
        axes.axvline(0, color=RULE, linewidth=1)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel("nats per token" if measure == "drift" else "perplexity (%)")
        axes.locator_params(axis="x", nbins=4)
    figure.suptitle(
        f"{measure[0].upper()}{measure[1:]}: difference to {to} (left is better)", fontsize=11, x=0.01, ha="left"
    )
    return figure


def dynamics(found: Findings, steps: pandas.DataFrame) -> Figure:
    """Draws loss on training text (above) and on validation text (below) against tokens and against seconds.

    Lines are means over seeds. Training loss is smoothed: every batch is another piece of text.

    Args:
        found: A language's results.
        steps: From `findings.step_costs`; without it there are no seconds to draw against.
    """
    style()
    over = ["tokens", "seconds"] if len(steps) else ["tokens"]
    figure, panels = plt.subplots(
        2, len(over), figsize=(WIDTH, 5.6), layout="constrained", squeeze=False, sharey="row", sharex="col"
    )
    for method, runs in by_method(found.runs).items():
        colour, marker = LOOKS[method]
        logs = pandas.concat([pandas.DataFrame(run["history"]) for run in runs])
        mean = logs.groupby("tokens")[["loss", "validation_loss"]].mean()
        checked = mean.validation_loss.dropna()
        for column, against in zip(panels.T, over, strict=True):
            if against == "seconds" and method not in steps.index:
                continue
            scale = steps.seconds_per_token[method] if against == "seconds" else 1e-3
            column[0].plot(mean.index * scale, mean.loss.ewm(span=8).mean(), color=colour, linewidth=1.4, label=method)
            column[1].plot(checked.index * scale, checked, color=colour, marker=marker, markersize=5, label=method)
    panels[0, 0].set(ylabel="training loss (nats)", title=get_language(found.lang).name)
    panels[1, 0].set(ylabel="validation loss (nats)")
    for axes, name in zip(panels[1], ("thousand tokens trained on", "seconds of training"), strict=False):
        axes.set_xlabel(name)
    _legend(figure)
    return figure


def ablations(found: Findings) -> Figure:
    """Draws gain (above) and what the others pay (below) over the share selected, the amount of text, and the budget.

    `lape` and its control of the same size, one seed: intervals are over text alone.
    """
    style()
    measures = ("target, sentences", "others, sentences")
    figure, panels = plt.subplots(
        2, 3, figsize=(WIDTH + 1, 5.4), layout="constrained", sharey="row", sharex="col", width_ratios=(4, 4, 3)
    )
    for shift, method in ((-0.06, "lape"), (0.06, CONTROL)):
        colour, marker = LOOKS[method]
        mine = [run for run in found.ablations if run["arm"]["method"] == method]
        for column, (places, runs) in zip(panels.T, _axes_of(mine), strict=True):
            tables = [effects([run], found.bases, found.lang).set_index("measure") for run in runs]
            for axes, measure in zip(column, measures, strict=True):
                rows = pandas.DataFrame([table.loc[measure] for table in tables])
                if len(rows):
                    at = numpy.array(list(places)) + shift
                    reach = [rows.value - rows.low, rows.high - rows.value]
                    axes.errorbar(at, rows.value, reach, fmt=marker + "-", color=colour, elinewidth=1, label=method)
    for axes, who in zip(panels[:, 0], (get_language(found.lang).name, "other languages"), strict=True):
        axes.set_ylabel(f"{who},\nsentences (%)")
    own = [run for run in found.ablations if run["arm"]["method"] == "lape"]
    titles = (
        "share of all neurons selected\n(weights trained)",
        "training tokens",
        "choice of neurons\n(weights trained)",
    )
    for column, title, (places, runs), name in zip(
        panels.T, titles, _axes_of(own), (_share, _amount, _choice), strict=True
    ):
        column[1].set_xticks(list(places), [name(run) for run in runs], fontsize=9)
        column[1].set_xlabel(title)
        column[1].margins(x=0.12)
        for axes in column:
            axes.axhline(0, color=RULE, linewidth=0.8)
    panels[0, 0].set_title(f"{get_language(found.lang).name}: change of perplexity at the rate of lape, one seed")
    _legend(figure)
    return figure


def _axes_of(runs: Sequence[Mapping]):
    """For each thing that is changed: places on the axis, and the runs that change nothing else, in order."""
    arms = [(Arm(**run["arm"]), run) for run in runs]
    for key, values in ABLATIONS.items():
        mine = [
            (arm, run) for arm, run in arms if all(getattr(arm, k) == getattr(Arm, k) for k in ABLATIONS if k != key)
        ]
        mine.sort(key=lambda pair: values.index(getattr(pair[0], key)))
        yield [values.index(getattr(arm, key)) for arm, _ in mine], [run for _, run in mine]


def _share(run):
    return f"{100 * run['arm']['top_rate']:g}%\n{_size(run)}"


def _amount(run):
    return f"{run['arm']['max_tokens']:,}"


def _choice(run):
    return f"{'own budget' if run['arm'].get('budget') else 'pooled'}\n{_size(run)}"


def _size(run):
    return f"({run['parameters'] / 1e6:.2f}M)"


def others(found: Findings, measure: str = "others, sentences") -> Axes:
    """Draws what each other language lost, by method, in the mean over seeds; orange is a loss, purple a gain.

    Args:
        found: Results of one language.
        measure: "others, sentences" or "others, articles".
    """
    style()
    rows = {}
    for method, runs in by_method(found.runs).items():
        moved = values_of(runs, found.bases, found.lang, measure)[0].mean(0)
        codes = other_languages(runs[0], found.lang, measure.split(", ")[1])
        rows[method] = {code: 100 * math.expm1(x) for code, x in zip(codes, moved.tolist(), strict=True)}
    values = pandas.DataFrame.from_dict(rows, orient="index").reindex([x for x in LOOKS if x in rows])
    name = get_language(found.lang).name
    title = f"{name} trained: change of perplexity of other languages' text (%)"
    return _squares(values, values.map(lambda x: str(round(x))), title, fontsize=7)


def by_language(found: Mapping[str, Findings], measure: str = "target, sentences", to: str = "lape") -> Axes:
    """Draws the paired difference of every method to one of them, in every language and in their mean.

    Orange is worse than `to`, purple better. A star marks an interval clear of zero, where there are several seeds; the
    mean's is over languages.

    Args:
        found: Results by language.
        measure: One of `effects.MEASURES`.
        to: The method to compare with.
    """
    style()
    tables = {get_language(lang).name: differences(*one.pair, lang, to) for lang, one in found.items()}
    tables["mean"] = across_languages({lang: one.pair for lang, one in found.items()}, to)
    every = pandas.concat(tables, names=["language", None]).query("measure == @measure").reset_index("language")
    clear = (every.low * every.high > 0) & ((every.seeds > 1) | (every.language == "mean"))
    every["text"] = [f"{x:+z.1f}{'*' if star else ''}" for x, star in zip(every.value, clear, strict=True)]
    columns = [method for method in LOOKS if method in set(every.method)]
    values, texts = (
        every.pivot(index="language", columns="method", values=name).reindex(index=list(tables), columns=columns)
        for name in ("value", "text")
    )
    title = f"{measure[0].upper()}{measure[1:]}: perplexity over that of {to} (%)"
    axes = _squares(values, texts.fillna(""), title, fontsize=9)
    axes.axhline(len(values) - 1, color=RULE, linewidth=1.5)
    plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return axes


def _squares(values: pandas.DataFrame, texts: pandas.DataFrame, title: str, fontsize: int) -> Axes:
    """Draws a table of percentages as squares: orange above zero, purple below."""
    axes = plt.subplots(figsize=(WIDTH, 0.34 * len(values) + 1.5), layout="constrained")[1]
    reach = float(numpy.nanquantile(values.abs(), 0.9))
    options = {"cmap": "PuOr_r", "vmin": -reach, "vmax": reach, "linewidths": 0.5, "annot_kws": {"fontsize": fontsize}}
    seaborn.heatmap(values, ax=axes, annot=texts, fmt="", cbar_kws={"label": "%"}, **options)
    axes.set(xlabel="", ylabel="", title=title)
    axes.tick_params(axis="both", rotation=0)
    return axes
