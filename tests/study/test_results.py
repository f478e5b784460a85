"""Complete and incomplete folders of results: what is read, which sentences are generated, and what is drawn."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict

import matplotlib
import pandas
import pytest

from study.compare import plots
from study.compare.results import base_perplexities, comparable, costs, languages_with_results, read_results, step_costs
from study.compare.runs import SEARCH, RunSettings, ablation_settings
from study.compare.statements import (
    ablation_table,
    add_verdict,
    compare_on_average,
    compare_with_rivals,
    count_verdicts,
    describe_best,
    describe_difference_by_seed,
    describe_losses,
    describe_rate_search,
    markdown_by_language,
)
from study.compare.summary import write_summary

matplotlib.use("Agg")
KINDS = ("articles", "sentences")
GAIN = {"lape": -0.2, "random": -0.2, "full": -0.5, "lora-equal": -0.1}  # the first two are the same but for noise
HARM = {"lape": 0.01, "random": 0.03, "full": 0.2, "lora-equal": 0.01}


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


def scores(lang, method=None, seed=0):
    def score(code, windows):
        changed = 0.0 if method is None else GAIN[method] if code == lang else HARM[method]
        noise = [math.sin(3 * i + 5 * seed + 7 * len(method or "")) for i in range(windows)]
        losses = [300 + 100 * (changed + 0.02 * x * (method is not None)) for x in noise]
        return {"perplexity": 20.0, "window_losses": losses, "window_tokens": [100] * windows}

    codes = {lang: 9, "en": 5, **{x: 2 for x in ("fr", "de", "mt", "af", "cy") if x != lang}}
    return {
        kind: {x: score(x, n if kind == "sentences" or x != "en" else 3) for x, n in codes.items()} for kind in KINDS
    }


def add(folder, lang, settings, validation=5.0, scored=True):
    history = [{"step": i, "tokens": 512 * i, "loss": 4 - 0.1 * i} for i in range(1, 9)]
    history[-1]["validation_loss"] = validation
    run = {
        "settings": asdict(settings),
        "protocol": {"train": "made up"},
        "parameters": round(1e6 * settings.top_rate),
        "optimizer_bytes": 8_000_000,
        "adapter_bytes": 4_000_000,
        "best_step": 8,
        "validation_loss": validation,
        "history": history,
    }
    if scored:
        after = scores(lang, settings.method, settings.seed)
        kl = {x: {"kl": HARM[settings.method] * (1 + i / 10)} for i, x in enumerate("abcdefg")}
        run |= {"base": "base-8bit.json", "after": after, "drift": kl}
    path = folder / "tiny" / lang / f"{settings.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    (path.parent / "base-8bit.json").write_text(json.dumps({"scores": scores(lang)}))


def searched(folder, lang, methods=tuple(GAIN), chosen=2, seeds=(0, 1, 2), traced=True):
    for method in methods:
        for place, rate in enumerate(SEARCH[method]):
            add(folder, lang, RunSettings(method, rate), 5.0 + abs(place - chosen), scored=traced)
        for seed in seeds:
            add(folder, lang, RunSettings(method, SEARCH[method][chosen], seed))


@pytest.fixture
def results(tmp_path):
    searched(tmp_path, "yo")
    for method in ("lape", "random"):
        for settings in ablation_settings(method, SEARCH["lape"][2]):
            if settings.name != RunSettings(method, settings.learning_rate).name:
                add(tmp_path, "yo", settings)
    for lang in ("mt", "af", "cy", "is"):
        for method in GAIN:
            add(tmp_path, lang, RunSettings(method, SEARCH[method][0]))
    return tmp_path


def test_a_language_is_read_at_the_chosen_rates(results):
    yo = read_results(results, "tiny", "yo")
    assert yo.methods == ["lape", "random", "full", "lora-equal"]
    assert {run["settings"]["learning_rate"] for run in yo.runs if run["settings"]["method"] == "full"} == {3e-5}
    assert len(yo.runs) == 4 * 3
    assert yo.search.chosen.sum() == 4
    assert "No rate is at the edge of its grid." in describe_rate_search(yo)
    assert len(yo.ablations) == 16
    settings = [*ablation_table(yo).setting]
    assert settings[:3] == ["1% selected", "2% selected", "5% selected (default)"]
    assert settings[4:] == ["4,096 tokens", "8,192 tokens", "32,768 tokens", "own budget, 1% of the weights"]
    assert yo.missing == [
        "Yoruba is not complete, not scored: random-uniform, ffn, lora, ia3. `python -m study.compare yo` resumes it."
    ]
    like = read_results(results, "tiny", "mt")
    assert like.search.empty
    assert describe_rate_search(like)[0].startswith(
        "The rates are those of other languages: lape 3.3e-05, random 3.3e-05, full"
    )
    assert like.missing[0].endswith("`make compare` resumes it."), "`python -m study.compare mt` would start a search"
    assert plots.rate_search({"mt": like}).axes == []
    assert plots.gain_against_drift({"mt": like}).axes == []
    assert like.methods == yo.methods
    assert languages_with_results(results, "tiny") == ["af", "cy", "is", "mt", "yo"]


def test_runs_at_every_rate_are_in_ascending_order(results, tmp_path, monkeypatch):
    yo = read_results(results, "tiny", "yo")
    assert [*yo.by_rate] == ["lape", "random", "full", "lora-equal"]
    assert [run["settings"]["learning_rate"] for run in yo.by_rate["full"]] == [*SEARCH["full"]]
    axes = plots.gain_against_drift({"yo": yo}).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines if line.get_label() in yo.by_rate] == [6] * 4
    assert axes.get_xlim()[1] < 10
    monkeypatch.setitem(GAIN, "lora", -0.1)
    monkeypatch.setitem(HARM, "lora", 0.01)
    add(results, "yo", RunSettings("lora", 1e-4))
    add(results, "yo", RunSettings("lora", 3e-4))
    assert "lora" not in read_results(results, "tiny", "yo").by_rate, (
        "scored at two rates because its chosen rate has changed"
    )
    searched(tmp_path, "ka", ["lape"], traced=False)
    other = read_results(tmp_path, "tiny", "ka")
    assert other.by_rate == {}
    assert "not scored at every rate: lape;" in other.missing[0]


def test_a_rate_at_the_edge_of_its_grid_is_reported(tmp_path):
    searched(tmp_path, "yo", ["lape", "random"], chosen=len(SEARCH["lape"]) - 1)
    said = describe_rate_search(read_results(tmp_path, "tiny", "yo"))
    assert said[1] == "At the edge of the grid (a rate outside it may be better): lape, random."
    assert said[2] == "Best at the last of 8 steps (more steps may be better): lape, random."


def test_missing_results_are_reported_with_the_command_that_makes_them(tmp_path):
    empty = read_results(tmp_path, "tiny", "ka")
    assert "Georgian: no scored run. `python -m study.compare ka`" in empty.missing[0]
    with pytest.raises(ValueError, match="nothing to compare yet: Georgian: no scored run"):
        comparable([empty])
    for rate in (1e-4, 3e-4):
        add(tmp_path, "ka", RunSettings("lape", rate), scored=rate > 1e-4)
    add(tmp_path, "ka", RunSettings("random", 3e-4, seed=1))
    partial = read_results(tmp_path, "tiny", "ka")
    assert "lape (seeds 1, 2)" in partial.missing[0]
    assert "random (seeds 0, 2)" in partial.missing[0]
    assert "rates not tried: lape 3.3e-05, lape 0.0009, lape 0.0027, lape 0.0081" in partial.missing[0]
    assert "lacks 15 ablations. `python -m study.compare ka --ablations`" in partial.missing[1]
    assert partial.ablations == []
    assert [*partial.search.learning_rate[partial.search.chosen]] == [3e-4]
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        read_results(tmp_path, "tiny", "xx")


def test_runs_of_two_protocols_are_refused(results):
    path = next((results / "tiny" / "yo").glob("full-*-seed1.json"))
    path.write_text(path.read_text().replace("made up", "other"))
    with pytest.raises(ValueError, match="different protocols"):
        read_results(results, "tiny", "yo")


def test_sentences_state_which_methods_are_better_worse_or_inconclusive(results):
    yo = read_results(results, "tiny", "yo")
    best = describe_best(yo)
    assert best[0].startswith("Yoruba, sentences: best is full, -39")
    assert best[0].endswith("All others are worse.")
    assert best[3].endswith("Differences are not assessed (one seed, or fewer than 5 units).")
    assert any("Inconclusive against" in sentence for sentence in best)
    of_rival = dict(zip(("random", "lora-equal", "full"), compare_with_rivals(yo), strict=True))
    better, worse, inconclusive, not_assessed = re.split("Worse: |Inconclusive: |Not assessed", of_rival["random"])
    assert "6 other languages, sentences +1.9%" in better
    assert "drift +0.0" in better
    assert worse == "none. "
    assert "Yoruba, sentences" in inconclusive
    assert not_assessed.startswith(
        " (one seed, fewer than 5 units, or the same text in every language): English, articles +"
    )
    assert "Worse: Yoruba, sentences -2" in of_rival["full"]
    assert describe_losses(yo)[0].startswith("Yoruba, sentences: lape is worse than full -2")
    assert "lora-equal" not in " ".join(describe_losses(yo))
    counts = count_verdicts({"yo": yo})
    assert counts.loc[("full", "target, sentences"), "worse"] == 1
    assert counts.loc[("full", "English, articles"), "not assessed"] == 1
    assert list(dict.fromkeys(counts.index.get_level_values("rival"))) == ["random", "lora-equal", "full"]
    text = markdown_by_language({"yo": yo}, describe_losses)
    assert text.startswith("**Yoruba**\n\n- Yoruba, sentences: lape is worse than")
    one_seed = read_results(results, "tiny", "mt")
    assert all("Better: none. Worse: none." in sentence for sentence in compare_with_rivals(one_seed))
    assert describe_losses(one_seed) == [
        "On no measure is lape worse than another method with an interval that excludes zero."
    ]
    assert describe_difference_by_seed(yo)[0].count("with seed") == 3
    assert describe_difference_by_seed(one_seed)[0].endswith("with seed 0.")
    assert compare_with_rivals(one_seed, ["ffn"]) == ["lape against ffn: ffn is not scored yet."]


def test_sentences_on_the_mean_over_languages(results):
    languages = comparable(read_results(results, "tiny", x) for x in languages_with_results(results, "tiny"))
    sentence = compare_on_average(languages)[2]
    assert "Worse: target, sentences -2" in sentence
    assert sentence.index("English, articles") > sentence.index("Not assessed"), "the same windows in every language"
    assert list(languages) == ["af", "cy", "is", "mt", "yo"]


def test_an_interval_that_includes_zero_is_inconclusive():
    rows = [[0.5, 2.0, 3], [-2.0, -0.5, 3], [-1.0, 1.0, 3], [float("nan")] * 2 + [3], [0.5, 2.0, 1]]
    table = pandas.DataFrame(rows, columns=["low", "high", "seeds"])
    assert [*add_verdict(table).verdict] == ["better", "worse", "inconclusive", "not assessed", "not assessed"]
    assert add_verdict(table, over_languages=True).verdict[4] == "better"


def test_the_summary_has_every_language_and_is_json(results):
    path = write_summary(results, "tiny")
    summary = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(summary["languages"]) == ["af", "cy", "is", "mt", "yo"]
    yo = summary["languages"]["yo"]
    assert yo["methods"]["full"]["minus_lape"]["target, sentences"]["verdict"] == "worse"
    assert yo["methods"]["lape"]["minus_lape"] is None
    assert yo["methods"]["lape"]["changes"]["English, articles"]["low"] is None
    assert yo["methods"]["lape"]["steps"] == [8, 8, 8]
    assert summary["over_languages"]["lape"]["target, sentences"]["units"] == 5
    assert [row["chosen"] for row in yo["search"][:4]] == [False, False, True, False]
    assert [run["learning_rate"] for run in yo["by_rate"]["full"]] == [*SEARCH["full"]]
    assert yo["by_rate"]["full"][0]["changes"]["target, sentences"]["value"] < -30
    assert len(yo["ablations"]) == 16
    assert len(yo["sentences"]["drift_at_equal_gain"]) == 1, "made-up runs gain no more at a higher rate"
    assert summary["over_languages_minus_lape"]["full"]["target, sentences"]["verdict"] == "worse"
    assert str(results) not in path.read_text()


def test_costs_come_from_the_benchmark_or_are_left_out_with_a_message(results, tmp_path, capsys):
    yo = read_results(results, "tiny", "yo")
    assert "peak (GiB)" not in costs(yo, step_costs(tmp_path / "none.json", "tiny"))
    assert "`make bench` measures them" in capsys.readouterr().out
    rows = [
        {"model": "tiny", "bits": bits, "variant": name, "seconds": 0.1 * bits, "peak_gib": bits / 8}
        for bits in (8, 16)
        for name in ("limit", "lape", "random", "full")
    ]
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"rows": rows, "tokens_per_step": 512}))
    steps = step_costs(path, "tiny")
    assert list(steps.index) == ["lape", "random", "full", "random-uniform"]
    assert steps.seconds_per_token["full"] == pytest.approx(1.6 / 512)
    table = costs(yo, steps)
    assert table["peak (GiB)"]["lape"] == 1
    assert table["peak (GiB)"]["full"] == 2
    assert math.isnan(table["peak (GiB)"]["lora-equal"])
    assert step_costs(path, "other").empty
    assert "has no rows of other" in capsys.readouterr().out


def test_figures_show_every_method_and_language(results):
    compared = comparable([read_results(results, "tiny", "yo"), read_results(results, "tiny", "is")])
    bases = base_perplexities(compared).loc[("Yoruba", "articles")]
    assert [*bases] == [20, 900, 300, 200]
    steps = step_costs(results / "none.json", "tiny")
    for figure in (
        plots.gain_against_retention(compared),
        plots.gain_against_retention(compared, retention="drift"),
        plots.differences(compared, "drift"),
        plots.rate_search(compared),
        plots.training_curves(compared["yo"], steps),
        plots.differences_by_language(compared).figure,
        plots.other_language_changes(compared["yo"]).figure,
    ):
        text = " ".join(t.get_text() for t in figure.findobj(lambda x: hasattr(x, "get_text")))
        assert "Yoruba" in text
        assert "lora-equal" in text
    panels = plots.ablations(compared["yo"]).axes
    assert [tick.get_text().split("\n")[0] for tick in panels[3].get_xticklabels()] == ["1%", "2%", "5%", "10%"]
    assert [tick.get_text() for tick in panels[4].get_xticklabels()][-1] == "32,768"
    assert [tick.get_text().split("\n")[0] for tick in panels[5].get_xticklabels()] == ["pooled", "own budget"]
