"""What a comparison found: gain and retention by method, with intervals over test text and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas
import torch

from ssetools.evaluation.intervals import interval

KINDS = ("sentences", "articles")
MEASURES = (*(f"{who}, {kind}" for who in ("target", "English", "others") for kind in KINDS), "drift")
"""What is measured: the target, English and the others on each kind of text, another kind first, and drift."""

_COLUMNS = ["method", "measure", "value", "low", "high", "seeds", "units"]


def values_of(
    runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, measure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lays out one measure of the runs of one method, seed by seed and unit by unit.

    Args:
        runs: Scored runs, one per seed.
        bases: Scores of the bases, by kind and language, by the file name that the runs give them.
        lang: The target language.
        measure: One of `MEASURES`.

    Returns:
        FloatTensor [seeds, units], nats per token gained (negative) or lost, and FloatTensor [units], their
        weights. Units are windows for the target and English. They are languages for the others and for drift:
        windows and samples of one language move together, and counted singly would make the interval too narrow.

    Raises:
        ValueError: If a run was scored on other text than its base.
    """
    if measure == "drift":
        values = [[one["kl"] for one in run["drift"].values()] for run in runs]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(values[0]), dtype=torch.float64)
    who, kind = measure.split(", ")
    codes = {"target": [lang], "English": ["en"], "others": other_languages(runs[0], lang, kind)}[who]
    moved = []
    for run in runs:
        after, before = ([scores[kind][x] for x in codes] for scores in (run["after"], bases[run["base"]]))
        if any(a["window_tokens"] != b["window_tokens"] for a, b in zip(after, before, strict=True)):
            raise ValueError(f"The runs of {lang!r} were scored on other text than their base: {measure}.")
        moved.append([_moved(a, b) for a, b in zip(after, before, strict=True)])
    if who == "others":
        values = [[(losses.sum() / tokens.sum()).item() for losses, tokens in run] for run in moved]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(codes), dtype=torch.float64)
    tokens = moved[0][0][1]
    return torch.stack([run[0][0] for run in moved]) / tokens, tokens


def other_languages(run: Mapping, lang: str, kind: str) -> list[str]:
    """Returns the codes of all languages but the target that a run was scored in, in the order of `values_of`."""
    return [code for code in run["after"][kind] if code != lang]


def _moved(after, before):
    losses = [torch.tensor(score["window_losses"], dtype=torch.float64) for score in (after, before)]
    return losses[0] - losses[1], torch.tensor(before["window_tokens"], dtype=torch.float64)


def effects(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str) -> pandas.DataFrame:
    """Tabulates every measure of every method.

    Args:
        runs: Scored runs of all methods of one language, from `Comparison`.
        bases: Scores of the bases by file name, as the runs name them.
        lang: The target language.

    Returns:
        A row per method and measure: method, measure, value, low, high, seeds, units. Perplexities change by `value`
        percent (negative is better); drift is in nats per token.
    """
    return _table(_changes(runs, bases, lang))


def differences(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, to: str = "lape") -> pandas.DataFrame:
    """Compares every method with one of them, unit by unit and seed by seed, over the seeds that both were run with.

    Returns:
        Columns as in `effects`; `value` says by how many percent the method's perplexity, relative to its base,
        lies above that of `to`, and for drift how many nats more it drifted. Negative is better than `to`.

    Raises:
        ValueError: If `to` was not run, or a method was run with none of its seeds.
    """
    return _table(_pairs(runs, bases, lang, to))


def _changes(runs, bases, lang):
    for method, mine in by_method(runs).items():
        for measure in MEASURES:
            yield method, measure, *values_of(mine, bases, lang, measure)


def _pairs(runs, bases, lang, to):
    methods = {method: {run["arm"]["seed"]: run for run in mine} for method, mine in by_method(runs).items()}
    if to not in methods:
        raise ValueError(f"{to} was not run in {lang!r}: there is nothing to compare with. Found: {[*methods]}.")
    own = methods.pop(to)
    for method, mine in methods.items():
        shared = [seed for seed in mine if seed in own]
        if not shared:
            raise ValueError(f"{method} and {to} were run with different seeds in {lang!r}: they cannot be paired.")
        for measure in MEASURES:
            theirs, ours = (values_of([some[seed] for seed in shared], bases, lang, measure) for some in (mine, own))
            yield method, measure, theirs[0] - ours[0], ours[1]


def across_languages(
    found: Mapping[str, tuple[Sequence[Mapping], Mapping]], to: str | None = "lape"
) -> pandas.DataFrame:
    """Averages every measure over languages, each weighing the same, with an interval over languages.

    Args:
        found: By language, its scored runs and the scores of its bases.
        to: Method whose paired difference to every other is averaged; None averages the changes themselves.

    Returns:
        Columns as in `effects`, `units` being languages and `seeds` 1: the means of a language's seeds are its value.
        A method counts in the languages in which it was run. What English lost has no interval: it is measured on the
        same windows whatever language was trained, and these do not become more by training more languages.
    """
    means: dict[tuple, list[float]] = {}
    for lang, (runs, bases) in found.items():
        for method, measure, values, weights in _pairs(runs, bases, lang, to) if to else _changes(runs, bases, lang):
            mean = ((values * weights).sum(1) / weights.sum()).mean().item()
            means.setdefault((method, measure), []).append(mean)
    tables = {key: torch.tensor([values], dtype=torch.float64) for key, values in means.items()}
    table = _table((*key, values, torch.ones_like(values[0])) for key, values in tables.items())
    table.loc[table.measure.str.startswith("English"), ["low", "high"]] = math.nan
    return table


def _table(cells) -> pandas.DataFrame:
    rows = []
    for method, measure, values, weights in cells:
        found = (_unit(measure, x) for x in interval(values, weights))
        rows.append([method, measure, *found, *values.shape])
    return pandas.DataFrame(rows, columns=_COLUMNS)


def _unit(measure, nats):
    return nats if measure == "drift" else 100 * math.expm1(nats)


def by_method(runs: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Groups runs by method, each group in the order of its seeds."""
    found: dict[str, list] = {}
    for run in sorted(runs, key=lambda run: run["arm"]["seed"]):
        found.setdefault(run["arm"]["method"], []).append(run)
    return found
