"""Intervals: their coverage with few windows and seeds, scipy's quantiles, and how they are written."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from ssetools.evaluation import intervals as module
from ssetools.evaluation.intervals import interval, percent, wilson, with_interval


def test_intervals_cover_known_means():
    torch.manual_seed(0)
    values = 0.5 + 0.1 * torch.randn(3, 200, dtype=torch.float64)
    mean, low, high = interval(values, torch.ones(200, dtype=torch.float64))
    assert low < 0.5 < high
    assert low < mean < high
    assert high - low < 0.1
    weights = torch.tensor([0.0] * 199 + [1.0], dtype=torch.float64)
    assert interval(values, weights)[0] == pytest.approx(values[:, -1].mean().item())


@pytest.mark.parametrize(("seeds", "units", "by_seed", "by_unit"), [(1, 9, 0, 1), (3, 5, 0, 1), (3, 9, 1, 0.3)])
def test_ninety_five_of_a_hundred_intervals_contain_the_true_mean(monkeypatch, seeds, units, by_seed, by_unit):
    monkeypatch.setattr(module, "_RESAMPLES", 500)
    torch.manual_seed(0)
    held, times = 0, 300
    for i in range(times):
        shape = {"dtype": torch.float64}
        values = by_seed * torch.randn(seeds, 1, **shape) + by_unit * torch.randn(1, units, **shape)
        values = values + 0.3 * torch.randn(seeds, units, **shape)
        _, low, high = interval(values, torch.ones(units, dtype=torch.float64), seed=i)
        held += low < 0 < high
    assert 0.92 <= held / times <= 0.99, "75 to 90 of a hundred intervals of a plain bootstrap contain it"


def test_the_widening_is_that_of_students_t():
    values = torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64)
    assert module._widening(values) == pytest.approx(2.776 / 1.960, rel=1e-3)  # four degrees of freedom
    assert module._widening(torch.ones(3, 9)) == 1
    both = torch.tensor([[0.0] * 9, [1.0] * 9, [2.0] * 9])  # all spread is between three seeds: two degrees of freedom
    assert module._widening(both) == pytest.approx(4.303 / 1.960, rel=1e-3)


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (3, 4), (7, 40), (5, 5)])
def test_wilsons_interval_is_that_of_scipy(correct, total):
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct / total, total) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("free", [1.7, 2, 4, 30])
def test_students_t_is_that_of_scipy(free):
    assert module.student_over_normal(free) == pytest.approx(stats.t.ppf(0.975, free) / stats.norm.ppf(0.975))


def test_numbers_are_written_with_their_interval():
    assert with_interval(-4.44, -5.12, -3.7) == "-4.4% (-5.1 to -3.7)"
    assert with_interval(0.1105, -0.1703, 0.3685, 4, " nats") == "+0.1105 nats (-0.1703 to +0.3685)"
    assert with_interval(1.0, None, None) == with_interval(1.0, math.nan, math.nan) == "+1.0%"
    assert [percent(x) for x in (0.04, -0.04, 10.04, 170141.03)] == ["0.0%", "0.0%", "+10.0%", "+170,141%"]
