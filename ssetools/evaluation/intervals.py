"""95% intervals, and how a number with its interval is written: for the library, the study and the book."""

from __future__ import annotations

import math

import torch
from scipy.special import ndtri, stdtrit

MIN_UNITS = 5  # with fewer there is no interval
INTERVAL = (0.025, 0.975)  # quantiles between which a 95% interval runs
_NORMAL = float(ndtri(INTERVAL[1]))  # standard errors from the mean to either end of a normal 95% interval
_RESAMPLES = 4000


def interval(values: torch.Tensor, weights: torch.Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Computes a weighted mean over seeds and units, and its 95% interval.

    The bootstrap resamples seeds and, with the same draw for every seed, units, since all seeds are scored on the
    same text. A plain bootstrap of three seeds and nine windows is too narrow, for two reasons. Its spread is that of
    n - 1 draws, not n: so one less is drawn of each. And it treats the spread as known: so its deviations are widened
    as Student's t is wider than the normal, with the degrees of freedom of the sum of both sources of spread (Welch
    and Satterthwaite). With one seed the interval covers the text alone.

    `values` are a FloatTensor [seeds, units], `weights` a FloatTensor [units], and `seed` is that of the bootstrap. Returns
    mean, low and high; the last two are NaN with fewer than `MIN_UNITS` units.
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
    low, high = means.double().quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    wider = _widening(values)
    return mean, mean + wider * (low - mean), mean + wider * (high - mean)


def _widening(values: torch.Tensor) -> float:
    """Returns how much wider Student's t is than the normal, for the spread over seeds and units together."""
    parts = [values.mean(1 - axis) for axis in (0, 1) if values.shape[axis] > 1]
    spreads = [(part.var() / len(part)).item() for part in parts]
    if not sum(spreads):
        return 1.0
    uncertain = sum(spread**2 / (len(part) - 1) for spread, part in zip(spreads, parts, strict=True))
    return student_over_normal(sum(spreads) ** 2 / uncertain)


def student_over_normal(free: float) -> float:
    """Returns the 97.5% point of Student's t with `free` degrees of freedom over that of the normal distribution."""
    return float(stdtrit(free, INTERVAL[1])) / _NORMAL


def wilson(share: float, units: float) -> tuple[float, float]:
    """Computes the ends of Wilson's 95% interval of a share (0 to 1) of independent units.

    It also holds for few units and for shares near 0 and 1. scipy's `binomtest` takes whole numbers of successes only.
    Questions on the same passage count as one unit, and the number of units answered correctly is then a fraction.
    """
    wider = 1 + _NORMAL**2 / units
    middle = (share + _NORMAL**2 / (2 * units)) / wider
    half = _NORMAL / wider * math.sqrt(share * (1 - share) / units + _NORMAL**2 / (4 * units**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def signed(value: float, digits: int = 1) -> str:
    """Writes a number with its sign: "-4.4". What rounds to zero has none; thousands have no decimals."""
    text = f"{value:+,.{0 if abs(value) >= 1000 else digits}f}"
    return text if text.strip("+-0.") else text[1:]


def percent(value: float, digits: int = 1) -> str:
    """Writes a change in percent: "-4.4%"."""
    return f"{signed(value, digits)}%"


def with_interval(value: float, low: float | None, high: float | None, digits: int = 1, unit: str = "%") -> str:
    """Writes a number with its unit and its 95% interval, if it has one (not None or NaN): "-4.4% (-5.1 to -3.7)"."""
    text = f"{signed(value, digits)}{unit}"
    if low is None or high is None or math.isnan(low):
        return text
    return f"{text} ({signed(low, digits)} to {signed(high, digits)})"
