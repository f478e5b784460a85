"""Gain and retention of each method, with intervals over test text, languages and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas
import torch

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import interval

GENRES = ("sentences", "articles")
"""Genres of the test text; sentences are the unseen genre, articles a genre that was trained on."""

MEASURES = (*(f"{who}, {genre}" for who in ("target", "English", "others") for genre in GENRES), "drift")
"""Changes of perplexity in the target, in English and in the other languages, by genre, and the drift from the base."""

_COLUMNS = ["method", "measure", "value", "low", "high", "seeds", "units"]
_Cell = tuple[str, str, torch.Tensor, torch.Tensor]


def values_by_unit(
    runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, measure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns one measure of the runs of one method, by seed and by unit of resampling.

    Args:
        runs: Scored runs, one per seed.
        bases: Scores of the base models by genre and language, by the file name to which the runs refer.
        lang: The target language.
        measure: One of `MEASURES`.

    Returns:
        FloatTensor [seeds, units], changes of the loss or drift in nats per token (negative is better), and FloatTensor
        [units], the weights of the units. Units are windows for the target and English. They are languages for the others
        and for drift, because windows of one language are not independent.

    Raises:
        ValueError: If a run was scored on other text than its base.
    """
    if measure == "drift":
        values = [[language["kl"] for language in run["drift"].values()] for run in runs]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(values[0]), dtype=torch.float64)
    who, genre = measure.split(", ")
    codes = {"target": [lang], "English": ["en"], "others": other_languages(runs[0], lang, genre)}[who]
    changes = []
    for run in runs:
        after, before = ([scores[genre][x] for x in codes] for scores in (run["after"], bases[run["base"]]))
        if any(a["window_tokens"] != b["window_tokens"] for a, b in zip(after, before, strict=True)):
            raise InvalidInput(
                f"The runs of {lang!r} and their base were scored on different text ({measure}): delete both, and run "
                "the comparison again."
            )
        changes.append([_loss_changes(a, b) for a, b in zip(after, before, strict=True)])
    if who == "others":
        values = [[(losses.sum() / tokens.sum()).item() for losses, tokens in run] for run in changes]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(codes), dtype=torch.float64)
    tokens = changes[0][0][1]
    return torch.stack([run[0][0] for run in changes]) / tokens, tokens


def other_languages(run: Mapping, lang: str, genre: str) -> list[str]:
    """Returns the codes of the languages in which a run was scored, without the target, in the order of the units."""
    return [code for code in run["after"][genre] if code != lang]


def _loss_changes(after: Mapping, before: Mapping) -> tuple[torch.Tensor, torch.Tensor]:
    losses = [torch.tensor(score["window_losses"], dtype=torch.float64) for score in (after, before)]
    return losses[0] - losses[1], torch.tensor(before["window_tokens"], dtype=torch.float64)


def changes(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str) -> pandas.DataFrame:
    """Tabulates every measure of every method.

    Args:
        runs: Scored runs of all methods in one language, from `Comparison`.
        bases: Scores of the base models, by the file name to which the runs refer.
        lang: The target language.

    Returns:
        A row per method and measure: method, measure, value, low, high, seeds, units. `value` is the change of perplexity
        in percent (negative is better); for drift, nats per token.
    """
    return _table(_changes(runs, bases, lang))


def paired_differences(
    runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, reference: str = "lape"
) -> pandas.DataFrame:
    """Compares every method with a reference method, paired by unit and by the seeds that both have.

    Returns:
        Columns as in `changes`. `value` is by how many percent the method's perplexity, relative to its base, exceeds that
        of the reference; for drift, the difference in nats per token. Negative means better than the reference.

    Raises:
        ValueError: If the reference has no runs, or a method has no seed in common with it.
    """
    return _table(_differences(runs, bases, lang, reference))


def _changes(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str) -> Iterator[_Cell]:
    for method, runs_of_method in by_method(runs).items():
        for measure in MEASURES:
            yield method, measure, *values_by_unit(runs_of_method, bases, lang, measure)


def _differences(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, reference: str) -> Iterator[_Cell]:
    by_seed = {method: {run["settings"]["seed"]: run for run in group} for method, group in by_method(runs).items()}
    if reference not in by_seed:
        raise InvalidInput(
            f"There is no run of {reference} in {lang!r} to compare with, only of {', '.join(by_seed)}. Run "
            f"`python -m study.compare {lang} --methods {reference}`."
        )
    reference_runs = by_seed.pop(reference)
    for method, runs_of_method in by_seed.items():
        seeds = [seed for seed in runs_of_method if seed in reference_runs]
        if not seeds:
            raise InvalidInput(
                f"{method} and {reference} have no seed in common in {lang!r} ({[*runs_of_method]} and "
                f"{[*reference_runs]}), so they cannot be paired. Run one of them with a seed of the other (--seeds)."
            )
        for measure in MEASURES:
            values, weights = values_by_unit([runs_of_method[seed] for seed in seeds], bases, lang, measure)
            reference_values, _ = values_by_unit([reference_runs[seed] for seed in seeds], bases, lang, measure)
            yield method, measure, values - reference_values, weights


def mean_over_languages(
    runs_and_bases: Mapping[str, tuple[Sequence[Mapping], Mapping]], reference: str | None = "lape"
) -> pandas.DataFrame:
    """Averages every measure over languages, with equal weights, and gives an interval over languages.

    Args:
        runs_and_bases: By language, its scored runs and the scores of its base models.
        reference: Method from which the paired differences of the others are averaged; None averages the changes.

    Returns:
        Columns as in `changes`. The units are languages, each with the mean over its seeds, so `seeds` is 1. A method is
        averaged over the languages in which it was run. English has no interval: its windows are the same whichever
        language was trained, so more languages are not more text.
    """
    means: dict[tuple[str, str], list[float]] = {}
    for lang, (runs, bases) in runs_and_bases.items():
        cells = _differences(runs, bases, lang, reference) if reference else _changes(runs, bases, lang)
        for method, measure, values, weights in cells:
            mean = ((values * weights).sum(1) / weights.sum()).mean().item()
            means.setdefault((method, measure), []).append(mean)
    tables = {key: torch.tensor([values], dtype=torch.float64) for key, values in means.items()}
    table = _table((*key, values, torch.ones_like(values[0])) for key, values in tables.items())
    table.loc[table.measure.str.startswith("English"), ["low", "high"]] = math.nan
    return table


def _table(cells: Iterable[_Cell]) -> pandas.DataFrame:
    rows = []
    for method, measure, values, weights in cells:
        in_units = (nats if measure == "drift" else 100 * math.expm1(nats) for nats in interval(values, weights))
        rows.append([method, measure, *in_units, *values.shape])
    return pandas.DataFrame(rows, columns=_COLUMNS)


def by_method(runs: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Groups runs by method, each group sorted by seed."""
    groups: dict[str, list] = {}
    for run in sorted(runs, key=lambda run: run["settings"]["seed"]):
        groups.setdefault(run["settings"]["method"], []).append(run)
    return groups
