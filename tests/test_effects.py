"""Intervals that hold what they say with few windows and few seeds, and effects laid out as they should be."""

from __future__ import annotations

import math

import pytest
import torch

from ssetools import effects as module
from ssetools.effects import across_languages, differences, effects, interval, values_of


def score(losses, tokens=None):
    return {"window_losses": losses, "window_tokens": tokens or [100] * len(losses)}


def made_run(method, seed, moved, drift=0.1):
    """A run whose every window of language x moved by `moved[x]` nats per token."""
    kinds = ("articles", "sentences")
    after = {kind: {x: score([300 + 100 * d + seed] * n) for x, (d, n) in moved.items()} for kind in kinds}
    kl = {x: {"kl": drift * (i + 1), "per_sample": [drift] * 4} for i, x in enumerate("abcdef")}
    return {"arm": {"method": method, "seed": seed}, "base": "base", "after": after, "drift": kl}


def made_base(moved):
    return {kind: {x: score([300] * n) for x, (_, n) in moved.items()} for kind in ("articles", "sentences")}


MOVED = {"yo": (-0.2, 9), "en": (0.1, 3), **{x: (0.01 * i, 2) for i, x in enumerate("abcd")}}


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


def test_units_are_windows_of_the_target_and_languages_of_the_others_and_of_drift():
    runs, base = [made_run("lape", s, MOVED) for s in (0, 1)], made_base(MOVED)
    values, weights = values_of(runs, {"base": base}, "yo", "target, sentences")
    assert values.shape == (2, 9)
    assert values[0].tolist() == pytest.approx([-0.2] * 9)
    assert weights.tolist() == [100] * 9
    others, _ = values_of(runs, {"base": base}, "yo", "others, articles")
    assert others.shape == (2, 5), "English and four more, not the target"
    assert others[0, 1:].tolist() == pytest.approx([0, 0.01, 0.02, 0.03])
    assert values_of(runs, {"base": base}, "yo", "drift")[0].shape == (2, 6)
    short = made_base({**MOVED, "yo": (0, 8)})
    with pytest.raises(ValueError, match="scored on other text"):
        values_of(runs, {"base": short}, "yo", "target, sentences")


def test_three_windows_have_no_interval():
    table = effects([made_run("lape", 0, MOVED)], {"base": made_base(MOVED)}, "yo").set_index("measure")
    assert math.isnan(table.low["English, sentences"])
    assert table.value["English, sentences"] == pytest.approx(100 * math.expm1(0.1))
    assert table.units["English, sentences"] == 3


def test_differences_pair_the_seeds_that_both_have():
    worse = {**MOVED, "yo": (-0.1, 9)}
    runs = [*(made_run("lape", s, MOVED) for s in (0, 1, 2)), made_run("full", 1, worse)]
    table = differences(runs, {"base": made_base(MOVED)}, "yo").set_index("measure")
    assert table.seeds.unique().tolist() == [1]
    assert table.value["target, sentences"] == pytest.approx(100 * math.expm1(0.1))
    with pytest.raises(ValueError, match="cannot be paired"):
        differences([*runs[:1], runs[-1]], {"base": made_base(MOVED)}, "yo")


def test_the_mean_over_languages_weighs_each_the_same():
    found = {}
    for i, lang in enumerate(("yo", "is", "ka", "mt", "af")):
        moved = {lang: (0.1 * i, 9), "en": (0.0, 5), "zz": (0.0, 2)}
        still = {**moved, lang: (0.0, 9)}
        runs = [made_run("full", 0, moved), *(made_run("lape", s, still) for s in (0, 1))]
        found[lang] = runs, {"base": made_base(moved)}
    row = across_languages(found).set_index("measure").loc["target, sentences"]
    assert row.value == pytest.approx(100 * math.expm1(0.2))
    assert row.low < row.value < row.high
    assert row.units == 5
    changes = across_languages(found, to=None).set_index(["method", "measure"])
    assert changes.value["full", "target, sentences"] == pytest.approx(100 * math.expm1(0.2))
