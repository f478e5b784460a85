"""What a comparison found: gain and retention by method, with intervals over test windows and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas
import torch

_RESAMPLES = 2000
_MIN_UNITS = 5


def measures(kinds: Sequence[str] = ("articles", "sentences")) -> list[str]:
    """Returns the names of what is measured: the target, English and the others on each kind of text, and drift."""
    return [f"{who}, {kind}" for who in ("target", "English", "others") for kind in kinds] + ["drift"]


def values_of(runs: Sequence[Mapping], base: Mapping, lang: str, measure: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Lays out one measure of the runs of one method, seed by seed and unit by unit.

    Args:
        runs: Scored runs, one per seed.
        base: Scores of the base by kind and language.
        lang: The target language.
        measure: A name of `measures`.

    Returns:
        FloatTensor [seeds, units], nats per token gained (negative) or lost, and FloatTensor [units], their
        weights. Units are windows for the target and English, languages for the others, sampled texts for drift.
    """
    if measure == "drift":
        values = [[x for one in run["drift"].values() for x in one["per_sample"]] for run in runs]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(values[0]), dtype=torch.float64)
    who, kind = measure.split(", ")
    before = base[kind]
    if who == "others":
        languages = [x for x in before if x != lang]
        values = [[_per_token(run["after"][kind][x], before[x]) for x in languages] for run in runs]
        return torch.tensor(values, dtype=torch.float64), torch.ones(len(languages), dtype=torch.float64)
    code = lang if who == "target" else "en"
    tokens = torch.tensor(before[code]["window_tokens"], dtype=torch.float64)
    if any(run["after"][kind][code]["window_tokens"] != before[code]["window_tokens"] for run in runs):
        raise ValueError(f"The runs of {lang!r} were scored on other text than their base: {kind}, {code}.")
    losses = torch.tensor([run["after"][kind][code]["window_losses"] for run in runs], dtype=torch.float64)
    return (losses - torch.tensor(before[code]["window_losses"], dtype=torch.float64)) / tokens, tokens


def _per_token(after, before):
    return (sum(after["window_losses"]) - sum(before["window_losses"])) / sum(before["window_tokens"])


def interval(values: torch.Tensor, weights: torch.Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Returns a weighted mean over seeds and units, and its 95% interval.

    The bootstrap resamples seeds and, with the same draw for every seed, units, since all seeds are scored on the
    same windows. Three seeds say little about seeds: the interval is mostly the text's.

    Args:
        values: FloatTensor [seeds, units].
        weights: FloatTensor [units].
        seed: Seed of the bootstrap.

    Returns:
        Mean, low and high; the last two are NaN with fewer than five units.
    """
    mean = ((values * weights).sum(1) / weights.sum()).mean().item()
    seeds, units = values.shape
    if units < _MIN_UNITS:
        return mean, math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    by_seed = torch.randint(seeds, (_RESAMPLES, seeds), generator=generator)
    by_unit = torch.randint(units, (_RESAMPLES, units), generator=generator)
    drawn = torch.stack([values[s].mean(0)[u] for s, u in zip(by_seed, by_unit, strict=True)])
    means = (drawn * weights[by_unit]).sum(1) / weights[by_unit].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return mean, low, high


def effects(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str) -> pandas.DataFrame:
    """Tabulates every measure of every method.

    Args:
        runs: Scored runs of all methods of one language, from `Comparison`.
        bases: Scores of the bases by file name, as the runs name them.
        lang: The target language.

    Returns:
        A row per method and measure: method, measure, value, low, high, seeds. Perplexities change by `value`
        percent (negative is better); drift is in nats per token.
    """
    rows = []
    for method, mine in _by_method(runs).items():
        for measure in measures():
            found = interval(*values_of(mine, bases[mine[0]["base"]], lang, measure))
            rows.append([method, measure, *(_unit(measure, x) for x in found), len(mine)])
    return pandas.DataFrame(rows, columns=["method", "measure", "value", "low", "high", "seeds"])


def differences(runs: Sequence[Mapping], bases: Mapping[str, Mapping], lang: str, to: str = "lape") -> pandas.DataFrame:
    """Compares every method with one of them, window by window and seed by seed.

    Returns:
        Columns as in `effects`; `value` says by how many percent the method's perplexity, relative to its base,
        lies above that of `to`, and for drift how many nats more it drifted. Negative is better than `to`.

    Raises:
        ValueError: If a method was not run with the same seeds as `to`.
    """
    by_method = _by_method(runs)
    own = by_method.pop(to)
    rows = []
    for method, mine in by_method.items():
        if [run["arm"]["seed"] for run in mine] != [run["arm"]["seed"] for run in own]:
            raise ValueError(f"{method} and {to} were run with different seeds in {lang!r}: they cannot be paired.")
        for measure in measures():
            theirs, weights = values_of(mine, bases[mine[0]["base"]], lang, measure)
            ours, _ = values_of(own, bases[own[0]["base"]], lang, measure)
            found = interval(theirs - ours, weights)
            rows.append([method, measure, *(_unit(measure, x) for x in found), len(mine)])
    return pandas.DataFrame(rows, columns=["method", "measure", "value", "low", "high", "seeds"])


def costs(runs: Sequence[Mapping]) -> pandas.DataFrame:
    """Tabulates what each method takes.

    Returns:
        A row per method: numbers trained, rate chosen, steps kept (median over seeds), and the optimiser's state and
        the adapter's file in MB, the peak memory of the process in GiB, and the median seconds of a step.
    """
    rows = {}
    for method, mine in _by_method(runs).items():
        first, steps = mine[0], sorted(run["best_step"] for run in mine)
        rows[method] = {
            "numbers trained": first["parameters"],
            "rate": first["arm"]["learning_rate"],
            "steps kept": steps[len(steps) // 2],
            "optimiser (MB)": round(first["optimizer_bytes"] / 1e6, 1),
            "adapter (MB)": round(first["adapter_bytes"] / 1e6, 1),
            "peak (GiB)": first["peak_memory_gib"],
            "seconds per step": first["seconds_per_step"],
        }
    return pandas.DataFrame(rows).T


def verdicts(table: pandas.DataFrame, measure: str, to: str = "lape") -> list[str]:
    """Puts the differences of one measure into sentences: better, worse, or not told apart."""
    sentences = []
    for row in table[table.measure == measure].itertuples():
        unit = " nats per token" if measure == "drift" else "%"
        numbers = f"{row.value:+.3g}{unit} ({row.low:+.3g} to {row.high:+.3g})"
        if row.low > 0:
            said = f"{to} is better than {row.method}"
        elif row.high < 0:
            said = f"{row.method} is better than {to}"
        else:
            said = f"{row.method} and {to} cannot be told apart"
        sentences.append(f"{measure}: {said}: {numbers}.")
    return sentences


def _unit(measure, nats):
    return nats if measure == "drift" else 100 * math.expm1(nats)


def _by_method(runs):
    found: dict[str, list] = {}
    for run in sorted(runs, key=lambda run: run["arm"]["seed"]):
        found.setdefault(run["arm"]["method"], []).append(run)
    return found
