"""Results that lie in a folder, whole or in part: what is read, what is said of it, and what is drawn."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import matplotlib
import pytest

from study.compare import plots as plots_compare
from study.compare.results import base_perplexities, comparable, costs, languages_found, read_findings, step_costs
from study.compare.runs import METHODS, Arm, ablations_of
from study.compare.statements import (
    ablated,
    against,
    against_on_average,
    best,
    edges,
    judged,
    listed,
    losses,
    spread_over_seeds,
    tally,
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
    def one(code, windows):
        moved = 0.0 if method is None else GAIN[method] if code == lang else HARM[method]
        noise = [math.sin(3 * i + 5 * seed + 7 * len(method or "")) for i in range(windows)]
        losses = [300 + 100 * (moved + 0.02 * x * (method is not None)) for x in noise]
        return {"perplexity": 20.0, "window_losses": losses, "window_tokens": [100] * windows}

    codes = {lang: 9, "en": 5, **{x: 2 for x in ("fr", "de", "mt", "af", "cy") if x != lang}}
    return {kind: {x: one(x, n if kind == "sentences" or x != "en" else 3) for x, n in codes.items()} for kind in KINDS}


def add(folder, lang, arm, validation=5.0, scored=True):
    history = [{"step": i, "tokens": 512 * i, "loss": 4 - 0.1 * i} for i in range(1, 9)]
    history[-1]["validation_loss"] = validation
    run = {
        "arm": asdict(arm),
        "protocol": {"train": "made up"},
        "parameters": round(1e6 * arm.top_rate),
        "optimizer_bytes": 8_000_000,
        "adapter_bytes": 4_000_000,
        "best_step": 8,
        "validation_loss": validation,
        "history": history,
    }
    if scored:
        after = scores(lang, arm.method, arm.seed)
        kl = {x: {"kl": HARM[arm.method] * (1 + i / 10)} for i, x in enumerate("abcdefg")}
        run |= {"base": "base-8bit.json", "after": after, "drift": kl}
    path = folder / "tiny" / lang / f"{arm.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    (path.parent / "base-8bit.json").write_text(json.dumps({"scores": scores(lang)}))


def searched(folder, lang, methods=tuple(GAIN), chosen=2, seeds=(0, 1, 2), traced=True):
    for method in methods:
        for place, rate in enumerate(METHODS[method].search):
            add(folder, lang, Arm(method, rate), 5.0 + abs(place - chosen), scored=traced)
        for seed in seeds:
            add(folder, lang, Arm(method, METHODS[method].search[chosen], seed))


@pytest.fixture
def results(tmp_path):
    searched(tmp_path, "yo")
    for method in ("lape", "random"):
        for arm in ablations_of(method, METHODS["lape"].search[2]):
            if arm.name != Arm(method, arm.learning_rate).name:
                add(tmp_path, "yo", arm)
    for lang in ("mt", "af", "cy", "is"):
        for method in GAIN:
            add(tmp_path, lang, Arm(method, METHODS[method].search[0]))
    return tmp_path


def test_a_language_is_read_at_the_chosen_rates(results):
    yo = read_findings(results, "tiny", "yo")
    assert yo.methods == ["lape", "random", "full", "lora-equal"]
    assert {run["arm"]["learning_rate"] for run in yo.runs if run["arm"]["method"] == "full"} == {3e-5}
    assert len(yo.runs) == 4 * 3
    assert yo.search.chosen.sum() == 4
    assert "None at the edge." in edges(yo)
    assert len(yo.ablations) == 16
    settings = [*ablated(yo).setting]
    assert settings[:3] == ["1% selected", "2% selected", "5% selected, as compared above"]
    assert settings[4:] == ["4,096 tokens", "8,192 tokens", "32,768 tokens", "own budget, 1% of the weights"]
    assert yo.missing == [
        "Yoruba is not complete, not scored: random-uniform, ffn, lora, ia3. `python -m study.compare yo` goes on."
    ]
    like = read_findings(results, "tiny", "mt")
    assert like.search.empty
    assert edges(like)[0].startswith("It took its rates from other languages: lape 3.3e-05, random 3.3e-05, full")
    assert like.missing[0].endswith("`make compare` goes on."), "`python -m study.compare mt` would begin a search"
    assert plots_compare.search({"mt": like}).axes == []
    assert plots_compare.along_rates({"mt": like}).axes == []
    assert like.methods == yo.methods
    assert languages_found(results, "tiny") == ["af", "cy", "is", "mt", "yo"]


def test_every_rate_of_the_search_is_there_lowest_first(results, tmp_path, monkeypatch):
    yo = read_findings(results, "tiny", "yo")
    assert [*yo.traced] == ["lape", "random", "full", "lora-equal"]
    assert [run["arm"]["learning_rate"] for run in yo.traced["full"]] == [*METHODS["full"].search]
    axes = plots_compare.along_rates({"yo": yo}).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines if line.get_label() in yo.traced] == [6] * 4
    assert axes.get_xlim()[1] < 10
    monkeypatch.setitem(GAIN, "lora", -0.1)
    monkeypatch.setitem(HARM, "lora", 0.01)
    add(results, "yo", Arm("lora", 1e-4))
    add(results, "yo", Arm("lora", 3e-4))
    assert "lora" not in read_findings(results, "tiny", "yo").traced, "scored twice because its choice moved"
    searched(tmp_path, "ka", ["lape"], traced=False)
    other = read_findings(tmp_path, "tiny", "ka")
    assert other.traced == {}
    assert "not scored at every rate: lape;" in other.missing[0]


def test_a_rate_at_the_edge_is_named(tmp_path):
    searched(tmp_path, "yo", ["lape", "random"], chosen=len(METHODS["lape"].search) - 1)
    said = edges(read_findings(tmp_path, "tiny", "yo"))
    assert said[1] == "At the edge of the grid, a better rate may lie beyond: lape, random."
    assert said[2] == "Best at the last of 8 steps, more may help: lape, random."


def test_what_is_missing_is_said_with_the_command(tmp_path):
    nothing = read_findings(tmp_path, "tiny", "ka")
    assert "Georgian: no scored run. `python -m study.compare ka`" in nothing.missing[0]
    with pytest.raises(ValueError, match="nothing to compare yet: Georgian: no scored run"):
        comparable([nothing])
    for rate in (1e-4, 3e-4):
        add(tmp_path, "ka", Arm("lape", rate), scored=rate > 1e-4)
    add(tmp_path, "ka", Arm("random", 3e-4, seed=1))
    some = read_findings(tmp_path, "tiny", "ka")
    assert "lape (seeds 1, 2)" in some.missing[0]
    assert "random (seeds 0, 2)" in some.missing[0]
    assert "rates not tried: lape 3.3e-05, lape 0.0009, lape 0.0027, lape 0.0081" in some.missing[0]
    assert "lacks 15 ablations. `python -m study.compare ka --ablations`" in some.missing[1]
    assert some.ablations == []
    assert [*some.search.learning_rate[some.search.chosen]] == [3e-4]
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        read_findings(tmp_path, "tiny", "xx")


def test_runs_of_two_protocols_are_refused(results):
    path = next((results / "tiny" / "yo").glob("full-*-seed1.json"))
    path.write_text(path.read_text().replace("made up", "other"))
    with pytest.raises(ValueError, match="different protocols"):
        read_findings(results, "tiny", "yo")


def test_the_verdict_says_who_wins_who_loses_and_who_cannot_be_told_apart(results):
    yo = read_findings(results, "tiny", "yo")
    said = best(yo)
    assert said[0].startswith("Yoruba, sentences: best is full, -39")
    assert said[0].endswith("All others are worse.")
    assert "One seed or fewer than 5 units: nobody is told apart." in said[3]
    versus = dict(zip(("random", "lora-equal", "full"), against(yo), strict=True))
    better, worse, equal = versus["random"].replace("Worse on", "|").replace("Not told apart on", "|").split("|")
    assert "6 other languages, sentences +1.9%" in better
    assert "drift +0.0" in better
    assert "nothing" in worse
    assert "Yoruba, sentences" in equal
    assert "fewer than 5 units, or one text for all): English, articles +" in equal
    assert "Worse on Yoruba, sentences -2" in versus["full"]
    assert losses(yo)[0].startswith("Yoruba, sentences: lape loses to full -2")
    assert "lora-equal" not in " ".join(losses(yo))
    counts = tally({"yo": yo})
    assert counts.loc[("full", "target, sentences"), "worse"] == 1
    assert counts.loc[("full", "English, articles"), "no verdict"] == 1
    assert listed({"yo": yo}, losses).startswith("**Yoruba**\n\n- Yoruba, sentences: lape loses")
    alone = read_findings(results, "tiny", "mt")
    assert all("Better on nothing. Worse on nothing." in line for line in against(alone)), "one seed"
    assert losses(alone) == ["lape loses to no method on any measure, as far as the intervals can say."]
    assert spread_over_seeds(yo)[0].count("with seed") == 3
    assert spread_over_seeds(alone)[0].endswith("with seed 0.")
    assert against(alone, ["ffn"]) == ["lape against ffn: ffn is not scored yet."]


def test_the_mean_over_languages_is_put_into_words(results):
    everywhere = comparable(read_findings(results, "tiny", x) for x in languages_found(results, "tiny"))
    said = against_on_average(everywhere)
    assert "Worse on target, sentences -2" in said[2]
    assert "No verdict" in said[2]
    assert said[2].index("English, articles") > said[2].index("No verdict"), "the same windows in every language"
    assert len(everywhere) == 5


def test_an_interval_across_zero_tells_nothing_apart():
    import pandas

    rows = [[0.5, 2.0, 3], [-2.0, -0.5, 3], [-1.0, 1.0, 3], [float("nan")] * 2 + [3], [0.5, 2.0, 1]]
    table = pandas.DataFrame(rows, columns=["low", "high", "seeds"])
    assert [*judged(table).verdict] == ["better", "worse", "not told apart", "no verdict", "no verdict"]
    assert judged(table, over_languages=True).verdict[4] == "better"


def test_the_summary_holds_every_language_and_is_json(results):
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
    assert [one["learning_rate"] for one in yo["traced"]["full"]] == [*METHODS["full"].search]
    assert yo["traced"]["full"][0]["changes"]["target, sentences"]["value"] < -30
    assert len(yo["ablations"]) == 16
    assert len(yo["verdict"]["cost_of_gain"]) == 1, "made-up runs gain no more at a higher rate"
    assert summary["over_languages_minus_lape"]["full"]["target, sentences"]["verdict"] == "worse"
    assert str(results) not in path.read_text()


def test_costs_come_from_the_benchmark_or_are_left_out_aloud(results, tmp_path, capsys):
    yo = read_findings(results, "tiny", "yo")
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
    assert "has no other" in capsys.readouterr().out


def test_the_figures_show_every_method_and_language(results):
    found = comparable([read_findings(results, "tiny", "yo"), read_findings(results, "tiny", "is")])
    bases = base_perplexities(found).loc[("Yoruba", "articles")]
    assert [*bases] == [20, 900, 300, 200]
    steps = step_costs(results / "none.json", "tiny")
    for figure in (
        plots_compare.plane(found),
        plots_compare.plane(found, kept="drift"),
        plots_compare.distance(found, "drift"),
        plots_compare.search(found),
        plots_compare.dynamics(found["yo"], steps),
        plots_compare.by_language(found).figure,
        plots_compare.others(found["yo"]).figure,
    ):
        text = " ".join(t.get_text() for t in figure.findobj(lambda x: hasattr(x, "get_text")))
        assert "Yoruba" in text
        assert "lora-equal" in text
    panels = plots_compare.ablations(found["yo"]).axes
    assert [tick.get_text().split("\n")[0] for tick in panels[3].get_xticklabels()] == ["1%", "2%", "5%", "10%"]
    assert [tick.get_text() for tick in panels[4].get_xticklabels()][-1] == "32,768"
    assert [tick.get_text().split("\n")[0] for tick in panels[5].get_xticklabels()] == ["pooled", "own budget"]
