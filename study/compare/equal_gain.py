"""What the same gain costs by each method, whatever its rate: how far the model has moved, read off along the grids."""

from __future__ import annotations

import math

import pandas
import torch

from ssetools.evaluation.intervals import INTERVAL, MIN_UNITS, percent, student_over_normal
from ssetools.languages import get_language
from study.compare.effects import values_of
from study.compare.results import Findings

BETWEEN, AT_MOST, NEVER = "between", "at most", "never"

_RESAMPLES = 2000
_COLUMNS = ["learning_rate", "gain", "drift", "method", "where", "times", "low", "high", "reached"]


def at_equal_gain(found: Findings, to: str = "lape") -> pandas.DataFrame:
    """Reads off how far each method drifts where it gains as much on sentences as `to` does at each of its rates.

    At the rates that a search chooses, methods differ in rate first. Here a method is read off between the rates of
    its grid, the logarithm of its drift being taken as linear in its gain. The interval is from resampling windows and,
    with other draws, languages, one less than there are of each and widened as in `intervals.interval`; it is over text
    alone, since there is one seed. A resample that lies beyond the grid has no bound on that side.

    Args:
        found: Results of a language whose methods were scored at every rate.
        to: The method whose rates are the rows; rates that gain nothing, or no more than a lower one, are left out.

    Returns:
        A row per such rate and other method: learning_rate, gain (percent of perplexity, negative is better) and
        drift (nats per token) of `to`; method; times, its drift over that of `to` at the same gain; low, high, the
        95% interval (0 and inf where it is open), NaN with fewer than `MIN_UNITS` windows or languages; reached, the
        share of resamples in which a rate gains as much; and where it was read: `BETWEEN` two rates; `AT_MOST`, when
        its lowest rate gains more already, so that times is an upper bound; `NEVER`, when no rate gains as much, and
        times is NaN. Empty when `to` was not scored at every rate.
    """
    if to not in found.traced:
        return pandas.DataFrame(columns=_COLUMNS)
    along = {method: _along(runs, found) for method, runs in found.traced.items()}
    (own_gain, own_drift, units), rows = along.pop(to), []
    wider = student_over_normal(units - 1) if units >= MIN_UNITS else math.nan
    for place, run in enumerate(found.traced[to]):
        wanted = own_gain[:, place]
        if wanted[0] >= min([0.0, *own_gain[0, :place].tolist()]):
            continue
        about = [run["arm"]["learning_rate"], 100 * math.expm1(wanted[0].item()), own_drift[0, place].exp().item()]
        for method, (gains, drifts, _) in along.items():
            there, reached, already = _read_off(gains, drifts, wanted)
            share = reached[1:].double().mean().item()
            if not reached[0]:
                rows.append([*about, method, NEVER, math.nan, math.nan, math.nan, share])
                continue
            where = AT_MOST if already[0] else BETWEEN
            if where == BETWEEN:
                there = there.masked_fill(already, -math.inf)
            apart = there - own_drift[:, place]
            low, high = (_widened(apart, share, wider) for share in INTERVAL)
            rows.append([*about, method, where, apart[0].exp().item(), low, high, share])
    return pandas.DataFrame(rows, columns=_COLUMNS)


def cost_of_gain(found: Findings, to: str = "lape") -> list[str]:
    """Says the same in words, a sentence for each rate of `to`."""
    sentences = []
    for (rate, gain, drift), rows in at_equal_gain(found, to).groupby(["learning_rate", "gain", "drift"]):
        parts = []
        for row in rows.itertuples():
            if row.where == NEVER:
                parts.append(
                    f"{row.method} gains as much at none of its rates (at one of them in {row.reached:.0%} of resamples)"
                )
            elif row.where == AT_MOST:
                parts.append(f"{row.method} at most {_span(row)} times, read at its lowest rate, which gains more")
            else:
                parts.append(f"{row.method} drifts {_span(row)} times as far")
        name = get_language(found.lang).name
        sentences.append(f"{name} {percent(gain)}, as {to} at {rate:g} with drift {drift:.4f}: {'; '.join(parts)}.")
    return sentences


def _span(row) -> str:
    times, low, high = (_times(x) for x in (row.times, row.low, row.high))
    return f"{times} ({low} to {high})" if not math.isnan(row.high) else times


def _times(x: float) -> str:
    if x in (0, math.inf):
        return "open"
    return f"{x:.0f}" if x > 9.5 else f"{x:.1f}" if x > 0.95 else f"{x:.2f}"


def _widened(apart: torch.Tensor, share: float, wider: float) -> float:
    """A quantile of the resamples, as far from the measured value as `wider` says; 0 or inf where they have no bound."""
    end = apart[1:].sort().values[round(share * (len(apart) - 2))]
    return (apart[0] + wider * (end - apart[0])).exp().item()


def _along(runs, found) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gain (nats per token) and log drift [1 + resamples, rates], the first row as measured; and how many units.

    Units are windows or languages, whichever are fewer.
    """
    gains, drifts = [], []
    for run in runs:
        moved, tokens = values_of([run], found.bases, found.lang, "target, sentences")
        kl, weights = values_of([run], found.bases, found.lang, "drift")
        gains.append(_resampled(moved[0], tokens, seed=0))
        drifts.append(_resampled(kl[0], weights, seed=1).log())
    return torch.stack(gains, 1), torch.stack(drifts, 1), min(len(tokens), len(weights))


def _resampled(values, weights, seed):
    """Weighted means: of all, then of resamples. The draws are the same in every run, which makes the runs paired."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (_RESAMPLES, max(1, len(values) - 1)), generator=generator)
    drawn = (values * weights)[picks].sum(1) / weights[picks].sum(1)
    return torch.cat([((values * weights).sum() / weights.sum())[None], drawn])


def _read_off(gains, drifts, wanted):
    """Log drift where a grid first gains what is wanted, infinite where it never does; whether it does; and whether its
    lowest rate gains as much or more already, whose drift is a bound from above."""
    already = gains[:, 0] <= wanted
    reached, there = already, drifts[:, 0]
    for place in range(1, gains.shape[1]):
        here = ~reached & (gains[:, place] <= wanted)
        share = (wanted - gains[:, place - 1]) / (gains[:, place] - gains[:, place - 1])
        between = drifts[:, place - 1] + share * (drifts[:, place] - drifts[:, place - 1])
        there, reached = torch.where(here, between, there), reached | here
    return there.masked_fill(~reached, math.inf), reached, already
