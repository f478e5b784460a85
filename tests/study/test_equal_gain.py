"""Drift at equal gain: interpolation between the rates of a grid, and bounds outside it."""

from __future__ import annotations

import math

import pandas
import pytest

from study.compare.equal_gain import AT_MOST, BETWEEN, NEVER, describe_drift_at_equal_gain, drift_at_equal_gain
from study.compare.results import LanguageResults

RATES = (1e-4, 3e-4, 9e-4)
NOISE = [0.3 * math.sin(5 * i) for i in range(9)]


def run(method, rate, gain, drift):
    """A scored run that gains `gain` nats per token and drifts by `drift`, in every window and language about so."""
    losses = [100 * (3 - gain * (1 + x)) for x in NOISE]
    score = {"window_losses": losses, "window_tokens": [100] * 9}
    kl = {code: {"kl": drift * (1 + x)} for code, x in zip("abcdefghi", NOISE, strict=True)}
    settings = {"method": method, "learning_rate": rate, "seed": 0}
    return {"settings": settings, "base": "base", "after": {"sentences": {"yo": score}}, "drift": kl}


def made_results(**grids):
    """Results of Yoruba with a grid of (gain, drift) for each method."""
    base = {"sentences": {"yo": {"window_losses": [300.0] * 9, "window_tokens": [100] * 9}}}
    by_rate = {
        name: [run(name, rate, *at) for rate, at in zip(RATES, grid, strict=False)] for name, grid in grids.items()
    }
    return LanguageResults("yo", [], {"base": base}, pandas.DataFrame(), by_rate, [], [])


def test_drift_is_interpolated_between_the_rates_on_a_logarithmic_scale():
    results = made_results(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16), (0.25, 9.0)])
    row = drift_at_equal_gain(results).iloc[0]
    assert row["where"] == BETWEEN
    assert row.gain == pytest.approx(100 * math.expm1(-0.2 * (1 + sum(NOISE) / 9)))
    assert row.ratio == pytest.approx(4.0), "half-way between 0.01 and 0.16 is 0.04"
    assert row.low == pytest.approx(4.0), "all runs change alike, so nothing is uncertain"


def test_the_drift_is_that_of_the_first_rate_that_gains_as_much():
    up_and_down = made_results(lape=[(0.2, 0.01)], full=[(0.1, 0.02), (0.3, 0.02), (0.1, 0.5)])
    assert drift_at_equal_gain(up_and_down).ratio.item() == pytest.approx(2.0)


def test_outside_the_grid_there_is_an_upper_bound_or_nothing():
    results = made_results(lape=[(0.2, 0.01)], full=[(0.4, 0.05), (0.5, 1.0)], random=[(0.1, 0.01), (0.19, 9.0)])
    rows = drift_at_equal_gain(results).set_index("method")
    assert (rows["where"]["full"], rows["where"]["random"]) == (AT_MOST, NEVER)
    assert rows.ratio["full"] == pytest.approx(5.0)
    assert math.isnan(rows.ratio["random"])
    (sentence,) = describe_drift_at_equal_gain(results)
    assert "full drifts at most 5.0 (5.0 to 5.0) times as far (upper bound: its lowest rate gains more)" in sentence
    assert "random gains as much at no rate (at some rate in 0% of resamples)" in sentence
    assert sentence.startswith("Yoruba at -")
    assert "which lape reaches at 0.0001 with a drift of 0.0098" in sentence


def test_rates_without_a_gain_are_left_out():
    results = made_results(lape=[(0.1, 0.01), (0.05, 0.1), (0.2, 0.3)], random=[(0.3, 0.2)])
    assert [*drift_at_equal_gain(results).learning_rate] == [1e-4, 9e-4]
    assert drift_at_equal_gain(made_results(lape=[(-0.1, 0.01)], random=[(0.3, 0.2)])).empty


def test_runs_whose_drift_varies_over_languages_have_an_interval():
    results = made_results(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)])
    for code, entry in results.by_rate["random"][1]["drift"].items():
        entry["kl"] *= 1 + (ord(code) - ord("a")) / 3
    row = drift_at_equal_gain(results).iloc[0]
    assert row.low < row.ratio < row.high


def uneven(results, method, place, by):
    """Makes a run's windows gain unevenly, the mean as it was."""
    losses = results.by_rate[method][place]["after"]["sentences"]["yo"]["window_losses"]
    losses[:] = [x + by * (i - 4) for i, x in enumerate(losses)]


def test_resamples_outside_the_grid_have_no_bound_on_that_side():
    results = made_results(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.21, 0.16)])
    uneven(results, "random", 1, by=2)
    row = drift_at_equal_gain(results).iloc[0]
    assert row["where"] == BETWEEN
    assert 0.5 < row.reached < 0.95
    assert row.high == math.inf
    assert "to unbounded) times as far" in describe_drift_at_equal_gain(results)[0]
    below = made_results(lape=[(0.2, 0.01)], random=[(0.19, 0.01), (0.4, 0.16)])
    uneven(below, "random", 0, by=2)
    row = drift_at_equal_gain(below).iloc[0]
    assert (row["where"], row.low, row.reached) == (BETWEEN, 0, 1)


def test_windows_and_languages_are_resampled_independently():
    """With as many windows as languages, one draw for both would pair window i with language i."""
    alike, opposite = (made_results(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)]) for _ in range(2))
    widths = []
    for results, sign in ((alike, 1), (opposite, -1)):
        uneven(results, "random", 1, by=1)
        for i, entry in enumerate(results.by_rate["random"][1]["drift"].values()):
            entry["kl"] *= 1 + sign * (i - 4) / 6
        row = drift_at_equal_gain(results).iloc[0]
        widths.append(math.log(row.high / row.low))
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


def test_few_languages_give_no_interval():
    results = made_results(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)])
    for runs in results.by_rate.values():
        for each in runs:
            each["drift"] = {"a": each["drift"]["a"]}
    row = drift_at_equal_gain(results).iloc[0]
    assert row.ratio == pytest.approx(4.0)
    assert math.isnan(row.low)
    assert "random drifts 4.0 times as far." in describe_drift_at_equal_gain(results)[0]


def test_without_runs_at_every_rate_there_are_no_sentences():
    assert describe_drift_at_equal_gain(made_results(random=[(0.1, 0.01)])) == []
