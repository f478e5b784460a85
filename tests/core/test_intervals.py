"""Intervals that hold what they say with few windows and few seeds."""

from __future__ import annotations

import pytest
import torch

from ssetools.evaluation import intervals as module
from ssetools.evaluation.intervals import interval


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
def test_ninety_five_of_a_hundred_hold_the_truth(monkeypatch, seeds, units, by_seed, by_unit):
    monkeypatch.setattr(module, "_RESAMPLES", 500)
    torch.manual_seed(0)
    held, times = 0, 300
    for i in range(times):
        shape = {"dtype": torch.float64}
        values = by_seed * torch.randn(seeds, 1, **shape) + by_unit * torch.randn(1, units, **shape)
        values = values + 0.3 * torch.randn(seeds, units, **shape)
        _, low, high = interval(values, torch.ones(units, dtype=torch.float64), seed=i)
        held += low < 0 < high
    assert 0.92 <= held / times <= 0.99, "a plain bootstrap holds 75 to 90 of a hundred"


def test_the_widening_is_that_of_students_t():
    values = torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64)
    assert module._widening(values) == pytest.approx(2.776 / 1.960, rel=3e-3)  # four degrees of freedom
    assert module._widening(torch.ones(3, 9)) == 1
    both = torch.tensor([[0.0] * 9, [1.0] * 9, [2.0] * 9])  # all spread lies between three seeds: two degrees
    assert module._widening(both) == pytest.approx(4.303 / 1.960, rel=0.04)
