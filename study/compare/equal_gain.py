"""Drift of each method at equal gain, interpolated between the learning rates at which it was scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas
import torch

from ssetools.evaluation.intervals import INTERVAL, MIN_UNITS, percent, student_over_normal
from ssetools.languages import get_language
from study.compare.effects import values_by_unit
from study.compare.results import LanguageResults

BETWEEN, AT_MOST, NEVER = "between", "at most", "never"

_RESAMPLES = 2000
_COLUMNS = ["learning_rate", "gain", "drift", "method", "where", "ratio", "low", "high", "reached"]


def drift_at_equal_gain(results: LanguageResults, reference: str = "lape") -> pandas.DataFrame:
    """Compares how far methods drift where they gain as much on sentences as the reference does at each of its rates.

    At the rates that a search chooses, methods differ mainly in the rate. Here a method's drift is interpolated between the
    rates of its grid: the logarithm of the drift is taken as linear in the gain. The interval comes from resampling windows
    and, independently, languages, one fewer than there are of each, and is widened as in `intervals.interval`. It does not
    include the variation over seeds, of which there is one.

    Args:
        results: Results of a language whose methods were scored at every rate.
        reference: The method whose rates are the rows. Rates that gain nothing, or no more than a lower rate, are left out.

    Returns:
        A row per such rate and other method: learning_rate, gain (percent of perplexity, negative is better) and drift
        (nats per token) of the reference; method; ratio, its drift divided by that of the reference at the same gain; low
        and high, the 95% interval (0 and inf where it is unbounded), NaN with fewer than `MIN_UNITS` windows or languages;
        reached, the share of resamples in which the method gains as much at some rate; and `where` the drift was read:
        `BETWEEN` two rates; `AT_MOST` if the lowest rate gains more already, so that ratio is an upper bound; `NEVER` if no
        rate gains as much, and ratio is NaN. Empty when the reference was not scored at every rate.
    """
    if reference not in results.by_rate:
        return pandas.DataFrame(columns=_COLUMNS)
    curves = {method: _resampled_curve(runs, results) for method, runs in results.by_rate.items()}
    (own_gain, own_drift, units), rows = curves.pop(reference), []
    widening = student_over_normal(units - 1) if units >= MIN_UNITS else math.nan
    for place, run in enumerate(results.by_rate[reference]):
        gain = own_gain[:, place]
        if gain[0] >= min([0.0, *own_gain[0, :place].tolist()]):
            continue
        row = [run["settings"]["learning_rate"], 100 * math.expm1(gain[0].item()), own_drift[0, place].exp().item()]
        for method, (gains, drifts, _) in curves.items():
            drift, reached, at_lowest_rate = _interpolate_drift(gains, drifts, gain)
            share = reached[1:].double().mean().item()
            if not reached[0]:
                rows.append([*row, method, NEVER, math.nan, math.nan, math.nan, share])
                continue
            where = AT_MOST if at_lowest_rate[0] else BETWEEN
            if where == BETWEEN:
                drift = drift.masked_fill(at_lowest_rate, -math.inf)
            log_ratio = drift - own_drift[:, place]
            low, high = (_widened_quantile(log_ratio, q, widening) for q in INTERVAL)
            rows.append([*row, method, where, log_ratio[0].exp().item(), low, high, share])
    return pandas.DataFrame(rows, columns=_COLUMNS)


def describe_drift_at_equal_gain(results: LanguageResults, reference: str = "lape") -> list[str]:
    """Describes `drift_at_equal_gain` in one sentence for each rate of the reference."""
    sentences = []
    table = drift_at_equal_gain(results, reference)
    for (rate, gain, drift), rows in table.groupby(["learning_rate", "gain", "drift"]):
        parts = []
        for row in rows.itertuples():
            if row.where == NEVER:
                parts.append(f"{row.method} gains as much at no rate (at some rate in {row.reached:.0%} of resamples)")
            elif row.where == AT_MOST:
                parts.append(
                    f"{row.method} drifts at most {_format_ratio(row)} times as far (upper bound: its lowest rate gains more)"
                )
            else:
                parts.append(f"{row.method} drifts {_format_ratio(row)} times as far")
        name = get_language(results.lang).name
        sentences.append(
            f"{name} at {percent(gain)}, which {reference} reaches at {rate:g} with a drift of {drift:.4f}: {'; '.join(parts)}."
        )
    return sentences


def _format_ratio(row) -> str:
    ratio, low, high = (_format_number(x) for x in (row.ratio, row.low, row.high))
    return ratio if math.isnan(row.high) else f"{ratio} ({low} to {high})"


def _format_number(x: float) -> str:
    if x in (0, math.inf):
        return "unbounded"
    return f"{x:.0f}" if x > 9.5 else f"{x:.1f}" if x > 0.95 else f"{x:.2f}"


def _widened_quantile(values: torch.Tensor, q: float, widening: float) -> float:
    """Returns the exponential of a quantile of the resamples, `widening` times as far from the measured value (the first)."""
    quantile = values[1:].sort().values[round(q * (len(values) - 2))]
    return (values[0] + widening * (quantile - values[0])).exp().item()


def _resampled_curve(runs: Sequence[Mapping], results: LanguageResults) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Returns gain (nats per token) and log drift, [1 + resamples, rates], the first row as measured, and the number of
    units: of windows or of languages, whichever is smaller."""
    gains, drifts = [], []
    for run in runs:
        loss, tokens = values_by_unit([run], results.bases, results.lang, "target, sentences")
        kl, weights = values_by_unit([run], results.bases, results.lang, "drift")
        gains.append(_resampled_means(loss[0], tokens, seed=0))
        drifts.append(_resampled_means(kl[0], weights, seed=1).log())
    return torch.stack(gains, 1), torch.stack(drifts, 1), min(len(tokens), len(weights))


def _resampled_means(values: torch.Tensor, weights: torch.Tensor, seed: int) -> torch.Tensor:
    """Returns the weighted mean, then those of the resamples, which are the same in every run, so that runs are paired."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (_RESAMPLES, max(1, len(values) - 1)), generator=generator)
    resampled = (values * weights)[picks].sum(1) / weights[picks].sum(1)
    return torch.cat([((values * weights).sum() / weights.sum())[None], resampled])


def _interpolate_drift(
    gains: torch.Tensor, drifts: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the log drift where a curve first reaches the gain wanted (infinite where it never does); whether it reaches
    it; and whether the lowest rate already does, whose drift is then an upper bound."""
    at_lowest_rate = gains[:, 0] <= wanted
    reached, drift = at_lowest_rate, drifts[:, 0]
    for place in range(1, gains.shape[1]):
        here = ~reached & (gains[:, place] <= wanted)
        share = (wanted - gains[:, place - 1]) / (gains[:, place] - gains[:, place - 1])
        between = drifts[:, place - 1] + share * (drifts[:, place] - drifts[:, place - 1])
        drift, reached = torch.where(here, between, drift), reached | here
    return drift.masked_fill(~reached, math.inf), reached, at_lowest_rate
