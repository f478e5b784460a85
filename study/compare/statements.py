"""Sentences and tables that state the outcome of the comparison, generated from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas

from ssetools.evaluation.intervals import MIN_UNITS, percent, with_interval
from ssetools.languages import get_language
from study.compare.effects import MEASURES, changes, mean_over_languages, paired_differences
from study.compare.results import CONTROL, LanguageResults
from study.compare.runs import RunSettings

RIVALS = ("random", "lora-equal", "full")
"""The main competitors of `lape`: random neurons of the same layers, LoRA of equal size, and all weights."""

BETTER, WORSE, INCONCLUSIVE, NOT_ASSESSED = "better", "worse", "inconclusive", "not assessed"


def add_verdict(differences: pandas.DataFrame, over_languages: bool = False) -> pandas.DataFrame:
    """Adds the column `verdict`: whether the reference is better or worse than the method of each row.

    An interval that includes zero is inconclusive. Rows without an interval (too few units) or with one seed are not
    assessed: the interval of one seed is over text only, and seeds vary by more than that.

    Args:
        differences: From `paired_differences` or `mean_over_languages`.
        over_languages: True for the latter, whose units are languages, so that one seed in each is enough.
    """
    verdict = pandas.Series(INCONCLUSIVE, differences.index)
    verdict[differences.low > 0], verdict[differences.high < 0] = BETTER, WORSE
    verdict[differences.low.isna() | ((differences.seeds == 1) & (not over_languages))] = NOT_ASSESSED
    return differences.assign(verdict=verdict)


def differences_with_verdict(results: LanguageResults, reference: str = "lape") -> pandas.DataFrame:
    """Returns the paired differences of every method from the reference, with verdicts."""
    return add_verdict(paired_differences(*results.runs_and_bases, results.lang, reference))


def describe_best(results: LanguageResults) -> list[str]:
    """Names, for each measure, the method with the lowest value, and the methods whose difference is inconclusive."""
    sentences, differences = [], {}
    for measure, table in changes(*results.runs_and_bases, results.lang).groupby("measure", sort=False):
        best = table.loc[table.value.idxmin()]
        if best.method not in differences:
            differences[best.method] = differences_with_verdict(results, best.method)
        others = differences[best.method].query("measure == @measure")
        sentence = f"{measure_name(measure, results)}: best is {best.method}, {format_value(best)}."
        if (others.verdict == NOT_ASSESSED).any():
            sentence += f" Differences are not assessed (one seed, or fewer than {MIN_UNITS} units)."
        elif (others.verdict == INCONCLUSIVE).any():
            sentence += f" Inconclusive against {', '.join(others.method[others.verdict == INCONCLUSIVE])}."
        elif len(others):
            sentence += " All others are worse."
        sentences.append(sentence)
    return sentences


def compare_with_rivals(results: LanguageResults, rivals: Sequence[str] = RIVALS, reference: str = "lape") -> list[str]:
    """States on which measures the reference is better than each rival, worse, or inconclusive.

    The values are by how much the rival's perplexity exceeds that of the reference (for drift, the difference).
    """
    table = differences_with_verdict(results, reference)
    return [_compare(table, rival, reference, lambda measure: measure_name(measure, results)) for rival in rivals]


def compare_on_average(
    results: Mapping[str, LanguageResults], rivals: Sequence[str] = RIVALS, reference: str = "lape"
) -> list[str]:
    """States the same for the means over languages, with intervals over languages."""
    means = mean_over_languages({lang: x.runs_and_bases for lang, x in results.items()}, reference)
    table = add_verdict(means, over_languages=True)
    return [_compare(table, rival, reference, str) for rival in rivals]


def _compare(table: pandas.DataFrame, rival: str, reference: str, name: Callable[[str], str]) -> str:
    rows = table[table.method == rival]
    if rows.empty:
        return f"{reference} against {rival}: {rival} is not scored yet."
    why = f" (one seed, fewer than {MIN_UNITS} units, or the same text in every language)"
    parts = []
    for verdict in (BETTER, WORSE, INCONCLUSIVE, NOT_ASSESSED):
        values = "; ".join(f"{name(x.measure)} {format_value(x)}" for x in rows[rows.verdict == verdict].itertuples())
        if values or verdict != NOT_ASSESSED:
            reason = why if verdict == NOT_ASSESSED else ""
            parts.append(f"{verdict.capitalize()}{reason}: {values or 'none'}.")
    return f"{reference} against {rival}. {' '.join(parts)}"


def describe_losses(results: LanguageResults, reference: str = "lape") -> list[str]:
    """Lists, for each measure, the methods that are better than the reference with an interval that excludes zero."""
    table = differences_with_verdict(results, reference)
    worse = table[table.verdict == WORSE].sort_values("value")
    sentences = [
        f"{measure_name(measure, results)}: {reference} is worse than "
        + ", ".join(f"{row.method} {format_value(row)}" for row in worse[worse.measure == measure].itertuples())
        + "."
        for measure in MEASURES
        if measure in set(worse.measure)
    ]
    return sentences or [f"On no measure is {reference} worse than another method with an interval that excludes zero."]


def count_verdicts(
    results: Mapping[str, LanguageResults], reference: str = "lape", rivals: Sequence[str] = RIVALS
) -> pandas.DataFrame:
    """Counts the languages with each verdict: a row per rival and measure, a column per verdict."""
    table = pandas.concat([differences_with_verdict(x, reference) for x in results.values()])
    counts = table.groupby(["method", "measure"]).verdict.value_counts().unstack(fill_value=0)
    order = [(rival, measure) for rival in rivals for measure in MEASURES if (rival, measure) in counts.index]
    counts = counts.reindex(index=order, columns=[BETTER, INCONCLUSIVE, WORSE, NOT_ASSESSED], fill_value=0)
    return counts.rename_axis(["rival", "measure"])


def ablation_table(results: LanguageResults, measure: str = "target, sentences") -> pandas.DataFrame:
    """Compares `lape` with its control in every setting of the ablations.

    Returns:
        A row per setting: setting, trained parameters, the change with either method, and the paired difference (control
        minus `lape`), with intervals over text only. There is one seed, so that no verdict is given.
    """
    rows, by_setting = [], {}
    for run in results.ablations:
        settings = RunSettings(**{**run["settings"], "method": "lape"})
        by_setting.setdefault(settings, {})[run["settings"]["method"]] = run
    for settings, runs in by_setting.items():
        arguments = list(runs.values()), results.bases, results.lang
        of_method = changes(*arguments).query("measure == @measure").set_index("method")
        row = {"setting": _describe_setting(settings), "parameters": next(iter(runs.values()))["parameters"]}
        row |= {method: format_value(of_method.loc[method]) for method in ("lape", CONTROL) if method in runs}
        if len(runs) == 2:
            row["difference"] = format_value(paired_differences(*arguments).query("measure == @measure").iloc[0])
        rows.append(row)
    return pandas.DataFrame(rows)


def describe_difference_by_seed(results: LanguageResults, measure: str = "target, sentences") -> list[str]:
    """States the difference of the control from `lape` for each seed, with the default settings."""
    differences = []
    for seed in sorted({run["settings"]["seed"] for run in results.runs}):
        runs = [
            x for x in results.runs if x["settings"]["seed"] == seed and x["settings"]["method"] in ("lape", CONTROL)
        ]
        if len(runs) == 2:
            table = paired_differences(runs, results.bases, results.lang).query("measure == @measure")
            differences.append(f"{percent(table.iloc[0].value)} with seed {seed}")
    return (
        [f"{measure_name(measure, results)}: {CONTROL} against lape {', '.join(differences)}."] if differences else []
    )


def _describe_setting(settings: RunSettings) -> str:
    if settings.budget is not None:
        return f"own budget, {100 * settings.budget:g}% of the weights"
    if settings.max_tokens != RunSettings.max_tokens:
        return f"{settings.max_tokens:,} tokens"
    return f"{100 * settings.top_rate:g}% selected" + (
        " (default)" if settings.top_rate == RunSettings.top_rate else ""
    )


def markdown_by_language(
    results: Mapping[str, LanguageResults], describe: Callable[[LanguageResults], list[str]]
) -> str:
    """Formats the sentences on every language as a list under the language's name, in Markdown."""
    return "\n\n".join(
        f"**{get_language(lang).name}**\n\n" + "\n".join(f"- {sentence}" for sentence in describe(x))
        for lang, x in results.items()
    )


def describe_rate_search(results: LanguageResults) -> list[str]:
    """States the rate that each method uses, and which rates are at the edge of their grid."""
    if results.search.empty:
        rates = {run["settings"]["method"]: run["settings"]["learning_rate"] for run in results.runs}
        return [f"The rates are those of other languages: {', '.join(f'{x} {rate:g}' for x, rate in rates.items())}."]
    chosen = results.search[results.search.chosen.astype(bool)]
    at_edge = ", ".join(chosen.method[chosen.at_edge.astype(bool)])
    last = max((row["step"] for run in results.runs for row in run["history"]), default=None)
    best_at_last = ", ".join(chosen.method[chosen.best_step == last])
    sentences = [
        ", ".join(f"{row.method} {row.learning_rate:g}" for row in chosen.itertuples()) + ".",
        f"At the edge of the grid (a rate outside it may be better): {at_edge}."
        if at_edge
        else "No rate is at the edge of its grid.",
    ]
    if best_at_last:
        sentences.append(f"Best at the last of {last} steps (more steps may be better): {best_at_last}.")
    return sentences


def measure_name(measure: str, results: LanguageResults) -> str:
    """Returns the name of a measure with the language spelled out, such as "Yoruba, sentences"."""
    if measure == "drift":
        return "drift"
    who, genre = measure.split(", ")
    others = len(next(iter(results.bases.values()))[genre]) - 1
    names = {"target": get_language(results.lang).name, "English": "English", "others": f"{others} other languages"}
    return f"{names[who]}, {genre}"


def format_value(row) -> str:
    """Formats the value of a table's row with its unit and interval."""
    digits, unit = (4, " nats") if row.measure == "drift" else (1, "%")
    return with_interval(row.value, row.low, row.high, digits, unit)
