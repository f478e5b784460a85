"""Intervals from few units and fewer seeds: a bootstrap widened for how few there are."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

MIN_UNITS = 5
"""Fewer units than these have no interval."""

_RESAMPLES = 4000


def interval(values: torch.Tensor, weights: torch.Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Returns a weighted mean over seeds and units, and its 95% interval.

    The bootstrap resamples seeds and, with the same draw for every seed, units, since all seeds are scored on the
    same text. Three seeds and nine windows are few, and a plain bootstrap of few is too narrow, for two reasons. Its
    spread is that of n - 1 draws, not n: so one less is drawn of each. And it takes the spread as known: so its
    deviations are widened as Student's t is wider than the normal, with the degrees of freedom of the sum of both
    sources of spread (Welch and Satterthwaite). One seed says nothing about seeds: the interval is the text's.

    Args:
        values: FloatTensor [seeds, units].
        weights: FloatTensor [units].
        seed: Seed of the bootstrap.

    Returns:
        Mean, low and high; the last two are NaN with fewer than `MIN_UNITS` units.
    """
    mean = ((values * weights).sum(1) / weights.sum()).mean().item()
    seeds, units = values.shape
    if units < MIN_UNITS:
        return mean, math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    by_seed = torch.randint(seeds, (_RESAMPLES, max(1, seeds - 1)), generator=generator)
    by_unit = torch.randint(units, (_RESAMPLES, units - 1), generator=generator)
    drawn, weight = values[by_seed].mean(1).gather(1, by_unit), weights[by_unit]
    means = (drawn * weight).sum(1) / weight.sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    wider = _widening(values)
    return mean, mean + wider * (low - mean), mean + wider * (high - mean)


def _widening(values: torch.Tensor) -> float:
    """How much wider Student's t is than the normal, for the spread over seeds and units together."""
    parts = [values.mean(1 - axis) for axis in (0, 1) if values.shape[axis] > 1]
    spreads = [(part.var() / len(part)).item() for part in parts]
    if not sum(spreads):
        return 1.0
    uncertain = sum(spread**2 / (len(part) - 1) for spread, part in zip(spreads, parts, strict=True))
    return student_over_normal(sum(spreads) ** 2 / uncertain)


def student_over_normal(free: float) -> float:
    """Returns the 97.5% point of Student's t with `free` degrees of freedom over that of the normal distribution."""
    z = NormalDist().inv_cdf(0.975)
    # Abramowitz and Stegun 26.7.5: within 4% of the exact point at two degrees of freedom, 0.3% from four on.
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return 1 + sum(term / free ** (i + 1) for i, term in enumerate(terms)) / z
