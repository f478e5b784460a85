"""Measures by method, and the units over which their intervals are computed."""

from __future__ import annotations

import math

import pytest

from study.compare.effects import changes, mean_over_languages, paired_differences, values_by_unit


def score(losses, tokens=None):
    return {"window_losses": losses, "window_tokens": tokens or [100] * len(losses)}


def made_run(method, seed, changed, drift=0.1):
    """A run in which the loss of every window of language x changes by `changed[x]` nats per token."""
    kinds = ("articles", "sentences")
    after = {kind: {x: score([300 + 100 * d + seed] * n) for x, (d, n) in changed.items()} for kind in kinds}
    kl = {x: {"kl": drift * (i + 1), "per_sample": [drift] * 4} for i, x in enumerate("abcdef")}
    return {"settings": {"method": method, "seed": seed}, "base": "base", "after": after, "drift": kl}


def made_base(changed):
    return {kind: {x: score([300] * n) for x, (_, n) in changed.items()} for kind in ("articles", "sentences")}


CHANGES = {"yo": (-0.2, 9), "en": (0.1, 3), **{x: (0.01 * i, 2) for i, x in enumerate("abcd")}}


def test_units_are_windows_of_the_target_and_languages_of_the_others_and_of_drift():
    runs, base = [made_run("lape", s, CHANGES) for s in (0, 1)], made_base(CHANGES)
    values, weights = values_by_unit(runs, {"base": base}, "yo", "target, sentences")
    assert values.shape == (2, 9)
    assert values[0].tolist() == pytest.approx([-0.2] * 9)
    assert weights.tolist() == [100] * 9
    others, _ = values_by_unit(runs, {"base": base}, "yo", "others, articles")
    assert others.shape == (2, 5), "English and four more, not the target"
    assert others[0, 1:].tolist() == pytest.approx([0, 0.01, 0.02, 0.03])
    assert values_by_unit(runs, {"base": base}, "yo", "drift")[0].shape == (2, 6)
    short = made_base({**CHANGES, "yo": (0, 8)})
    with pytest.raises(ValueError, match="scored on different text"):
        values_by_unit(runs, {"base": short}, "yo", "target, sentences")


def test_three_windows_have_no_interval():
    table = changes([made_run("lape", 0, CHANGES)], {"base": made_base(CHANGES)}, "yo").set_index("measure")
    assert math.isnan(table.low["English, sentences"])
    assert table.value["English, sentences"] == pytest.approx(100 * math.expm1(0.1))
    assert table.units["English, sentences"] == 3


def test_differences_pair_the_seeds_that_both_have():
    worse = {**CHANGES, "yo": (-0.1, 9)}
    runs = [*(made_run("lape", s, CHANGES) for s in (0, 1, 2)), made_run("full", 1, worse)]
    table = paired_differences(runs, {"base": made_base(CHANGES)}, "yo").set_index("measure")
    assert table.seeds.unique().tolist() == [1]
    assert table.value["target, sentences"] == pytest.approx(100 * math.expm1(0.1))
    with pytest.raises(ValueError, match="no seed in common"):
        paired_differences([*runs[:1], runs[-1]], {"base": made_base(CHANGES)}, "yo")


def test_the_mean_over_languages_has_equal_weights():
    runs_and_bases = {}
    for i, lang in enumerate(("yo", "is", "ka", "mt", "af")):
        changed = {lang: (0.1 * i, 9), "en": (0.0, 5), "zz": (0.0, 2)}
        still = {**changed, lang: (0.0, 9)}
        runs = [made_run("full", 0, changed), *(made_run("lape", s, still) for s in (0, 1))]
        runs_and_bases[lang] = runs, {"base": made_base(changed)}
    row = mean_over_languages(runs_and_bases).set_index("measure").loc["target, sentences"]
    assert row.value == pytest.approx(100 * math.expm1(0.2))
    assert row.low < row.value < row.high
    assert row.units == 5
    averaged = mean_over_languages(runs_and_bases, reference=None).set_index(["method", "measure"])
    assert averaged.value["full", "target, sentences"] == pytest.approx(100 * math.expm1(0.2))
