"""Methods compared where they gain the same: what is read off between the rates of a grid, and what lies beyond it."""

from __future__ import annotations

import math

import pandas
import pytest

from study.compare.equal_gain import AT_MOST, BETWEEN, NEVER, at_equal_gain, cost_of_gain
from study.compare.results import Findings

RATES = (1e-4, 3e-4, 9e-4)
NOISE = [0.3 * math.sin(5 * i) for i in range(9)]


def run(method, rate, gain, drift):
    """A scored run that gains `gain` nats per token and drifts by `drift`, in every window and language about so."""
    losses = [100 * (3 - gain * (1 + x)) for x in NOISE]
    score = {"window_losses": losses, "window_tokens": [100] * 9}
    kl = {code: {"kl": drift * (1 + x)} for code, x in zip("abcdefghi", NOISE, strict=True)}
    arm = {"method": method, "learning_rate": rate, "seed": 0}
    return {"arm": arm, "base": "base", "after": {"sentences": {"yo": score}}, "drift": kl}


def found(**grids):
    """Findings of Yoruba with a grid of (gain, drift) for each method."""
    base = {"sentences": {"yo": {"window_losses": [300.0] * 9, "window_tokens": [100] * 9}}}
    traced = {
        name: [run(name, rate, *at) for rate, at in zip(RATES, grid, strict=False)] for name, grid in grids.items()
    }
    return Findings("yo", [], {"base": base}, pandas.DataFrame(), traced, [], [])


def test_drift_is_read_off_between_the_rates_on_a_logarithmic_scale():
    one = found(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16), (0.25, 9.0)])
    row = at_equal_gain(one).iloc[0]
    assert row["where"] == BETWEEN
    assert row.gain == pytest.approx(100 * math.expm1(-0.2 * (1 + sum(NOISE) / 9)))
    assert row.times == pytest.approx(4.0), "half-way between 0.01 and 0.16 is 0.04"
    assert row.low == pytest.approx(4.0), "all runs move alike: nothing is uncertain"


def test_a_method_is_taken_where_it_first_gains_as_much():
    up_and_down = found(lape=[(0.2, 0.01)], full=[(0.1, 0.02), (0.3, 0.02), (0.1, 0.5)])
    assert at_equal_gain(up_and_down).times.item() == pytest.approx(2.0)


def test_beyond_the_grid_there_is_a_bound_or_nothing():
    one = found(lape=[(0.2, 0.01)], full=[(0.4, 0.05), (0.5, 1.0)], random=[(0.1, 0.01), (0.19, 9.0)])
    rows = at_equal_gain(one).set_index("method")
    assert (rows["where"]["full"], rows["where"]["random"]) == (AT_MOST, NEVER)
    assert rows.times["full"] == pytest.approx(5.0)
    assert math.isnan(rows.times["random"])
    (said,) = cost_of_gain(one)
    assert "full at most 5.0 (5.0 to 5.0) times, read at its lowest rate, which gains more" in said
    assert "random gains as much at none of its rates (at one of them in 0% of resamples)" in said
    assert said.startswith("Yoruba -")
    assert "as lape at 0.0001" in said


def test_a_rate_that_only_harms_is_no_gain_to_compare():
    one = found(lape=[(0.1, 0.01), (0.05, 0.1), (0.2, 0.3)], random=[(0.3, 0.2)])
    assert [*at_equal_gain(one).learning_rate] == [1e-4, 9e-4]
    assert at_equal_gain(found(lape=[(-0.1, 0.01)], random=[(0.3, 0.2)])).empty


def test_runs_that_do_not_move_alike_have_an_interval():
    one = found(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)])
    for code, entry in one.traced["random"][1]["drift"].items():
        entry["kl"] *= 1 + (ord(code) - ord("a")) / 3
    row = at_equal_gain(one).iloc[0]
    assert row.low < row.times < row.high


def uneven(one, method, place, by):
    """Makes a run's windows gain unevenly, the mean as it was."""
    losses = one.traced[method][place]["after"]["sentences"]["yo"]["window_losses"]
    losses[:] = [x + by * (i - 4) for i, x in enumerate(losses)]


def test_resamples_beyond_the_grid_have_no_bound_on_that_side():
    one = found(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.21, 0.16)])
    uneven(one, "random", 1, by=2)
    row = at_equal_gain(one).iloc[0]
    assert row["where"] == BETWEEN
    assert 0.5 < row.reached < 0.95
    assert row.high == math.inf
    assert "to open) times as far" in cost_of_gain(one)[0]
    below = found(lape=[(0.2, 0.01)], random=[(0.19, 0.01), (0.4, 0.16)])
    uneven(below, "random", 0, by=2)
    row = at_equal_gain(below).iloc[0]
    assert (row["where"], row.low, row.reached) == (BETWEEN, 0, 1)


def test_windows_and_languages_are_drawn_apart():
    """With as many windows as languages, one draw for both would pair window i with language i."""
    alike, opposite = (found(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)]) for _ in range(2))
    widths = []
    for one, sign in ((alike, 1), (opposite, -1)):
        uneven(one, "random", 1, by=1)
        for i, entry in enumerate(one.traced["random"][1]["drift"].values()):
            entry["kl"] *= 1 + sign * (i - 4) / 6
        row = at_equal_gain(one).iloc[0]
        widths.append(math.log(row.high / row.low))
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


def test_few_languages_give_no_interval():
    one = found(lape=[(0.2, 0.01)], random=[(0.1, 0.01), (0.3, 0.16)])
    for runs in one.traced.values():
        for each in runs:
            each["drift"] = {"a": each["drift"]["a"]}
    row = at_equal_gain(one).iloc[0]
    assert row.times == pytest.approx(4.0)
    assert math.isnan(row.low)
    assert "random drifts 4.0 times as far." in cost_of_gain(one)[0]


def test_without_runs_at_every_rate_there_is_nothing_to_say():
    assert cost_of_gain(found(random=[(0.1, 0.01)])) == []
