"""Effects of switching neuron sets off, the figures of the atlas and its interactive page, on made-up numbers."""

import json
import re

import families
import matplotlib
import numpy
import pytest
import torch

from ssetools import NeuronSets, get_language
from study.atlas import effects, plots
from study.atlas.page import interactive_atlas

matplotlib.use("Agg")
LANGS = ["yo", "is", "en", "ka"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture
def study(monkeypatch):
    def words(source, lang):
        start = 3 + 20 * LANGS.index(lang)
        return [" ".join(f"w{start + (7 * i + k) % 30 % 90}" for k in range(11)) for i in range(60)]

    monkeypatch.setattr(effects, "atlas_texts", words)
    sets = {lang: [[3 * k, 3 * k + 1], [k]] for k, lang in enumerate(LANGS)}
    return families.tiny_model("llama"), NeuronSets(sets, 48)


@pytest.fixture
def about():
    return {
        code: {
            "name": code.upper(),
            "script": "Latn",
            "family": "Slavic",
            "stock": "Indo-European" if k % 2 else "Atlantic-Congo",
            "neurons": {"1": k, "5": 10 * k},
            "layers": [k, 0, 9 * k],
            "nearest": {"en": 0.5} if code != "en" else {},
            "map": [float(k), -1.0],
            "tokens_per_byte": 0.3 + k / 10,
            "wikipedia_articles": None if k == 3 else 10**k,
        }
        for k, code in enumerate(LANGS)
    }


def test_an_interrupted_measurement_is_resumed(study, word_tokenizer, tmp_path):
    model, sets = study
    path = tmp_path / "losses.json"
    part = effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path, seconds=-1)
    assert part["rows"] == {}
    whole = effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path)
    assert list(whole["rows"])[:4] == ["base", "set yo", "control0 yo", "control1 yo"]
    assert whole["rows"]["control0 yo"] != whole["rows"]["control1 yo"], "two independent draws"
    assert numpy.array(whole["rows"]["base"]).shape == (4, effects.WINDOWS)
    assert whole["rows"]["set yo"] != whole["rows"]["base"]
    before = path.stat().st_mtime_ns
    assert effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path) == whole
    assert path.stat().st_mtime_ns == before, "no row is measured again"
    with pytest.raises(ValueError, match="languages: 4, wanted 2; .*Delete it"):
        effects.deactivation_losses(model, word_tokenizer, sets, LANGS[:2], path)


def test_declarations_are_scored_once(study, word_tokenizer, tmp_path, monkeypatch):
    model, _ = study
    monkeypatch.setattr(effects, "_windows", lambda *a: torch.arange(3, 90).view(3, 29))
    found = effects.score_declarations(model, word_tokenizer, LANGS, tmp_path / "scores.json")
    assert found["yo"]["words"] == 660
    assert found["yo"]["tokens"] == 720, "a newline after each document"
    monkeypatch.setattr(effects, "window_losses", lambda *a: pytest.fail("scored again"))
    assert effects.score_declarations(model, word_tokenizer, LANGS, tmp_path / "scores.json") == found


def made_up_losses(fails="ka"):
    rng = numpy.random.default_rng(0)
    rows = {"base": numpy.full((4, 6), 3.0)}
    for i, lang in enumerate(LANGS):
        added = numpy.zeros((4, 6))
        added[i] = 0.0 if lang == fails else 1.0
        if lang == "is":
            added[LANGS.index("en")] = 2.0  # the set of Icelandic has a larger effect on English than that of English
        rows[f"set {lang}"] = 3.1 + added + 0.05 * rng.normal(size=(4, 6))
        for k in range(effects.CONTROLS):
            rows[f"control{k} {lang}"] = 3.1 + 0.05 * rng.normal(size=(4, 6))
    return {"languages": LANGS, "rows": {name: row.tolist() for name, row in rows.items()}}


def test_specificity_finds_the_set_that_fails():
    found = effects.specificity(made_up_losses(), resamples=200)
    assert not found["yo"]["fails"]
    assert found["en"]["fails"]
    assert found["ka"]["fails"]
    assert found["en"]["worst"] == "is"
    assert found["en"]["low"] > 0
    assert found["ka"]["low"] < 0
    assert found["yo"]["specificity"] == pytest.approx(1.0, abs=0.1)
    assert found["yo"]["low"] < found["yo"]["specificity"] < found["yo"]["high"]
    assert found["yo"]["control"] == pytest.approx(0.1, abs=0.06)
    assert found["yo"]["worst"] == "yo"
    table = effects.effect_table(made_up_losses())
    assert table.loc["yo", "yo"] > 0.8
    assert table.loc["is", "en"] > 1.8
    assert abs(table.loc["en", "is"]) < 0.2, "rows are sets, columns are languages"


def test_figures_show_the_values_under_their_labels(about):
    results = {**made_up_losses(), "specificity": effects.specificity(made_up_losses(), resamples=50)}
    axes = plots.specificity(results)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    order = sorted(LANGS, key=lambda code: results["specificity"][code]["specificity"])
    assert [label.split(" (")[0] for label in labels] == [get_language(code).name for code in order]
    assert [line.get_xdata()[0] for line in axes.lines[:4]] == [results["specificity"][x]["specificity"] for x in order]
    assert "English (larger effect: Icelandic)" in labels

    heat_map = plots.effects(results)
    assert [x.get_text() for x in heat_map.get_xticklabels()] == ["Yoruba", "Icelandic", "English", "Georgian"]
    shares = heat_map.collections[0].get_array().reshape(4, 4)
    assert shares[0, 0] == shares[1, 2] == 1, "the largest effect in Yoruba, and in English"
    assert shares[:, 3].max() == 0, "no set adds loss in Georgian"

    interval = {"jaccard": 0.5, "low": 0.4, "high": 0.6}
    pairs = {pair: dict.fromkeys(LANGS, interval) for pair in ("13/50", "50/all", "13/all")}
    axes = plots.selections({"groups": {"13": " ".join(LANGS)}, "jaccard": {"5": pairs}})
    assert [x.get_text() for x in axes.get_legend().texts] == [
        f"{x} languages" for x in ("13 and 50", "50 and all", "13 and all")
    ]
    assert axes.lines[0].get_ydata().tolist() == [0.5] * 4

    few, more = ({str(tokens): {"mean": interval, **dict.fromkeys(LANGS[:n], {**interval, "jaccard": value})}
                  for tokens in (200, 400)} for n, value in ((4, 0.3), (2, 0.6)))  # fmt: skip
    axes = plots.stability({"1": few, "5": few}, {"1": more, "5": more}).axes[0]
    assert {line.get_label(): line.get_ydata()[0] for line in axes.lines} == {"4 languages": 0.3, "2 languages": 0.6}

    jaccard = {"within_first": 0.8, "within_second": 0.2, "across": 0.3}
    axes = plots.genres({"5": {**dict.fromkeys(LANGS, jaccard), "mean": jaccard}})
    numpy.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.4, 0.3]] * 4)


def test_figures_of_neuron_sets_are_ordered(about):
    sets = NeuronSets({lang: [[*range(k + 1)], [5] if k < 2 else [6]] for k, lang in enumerate(LANGS)}, 48)
    image, total, *_ = plots.neurons_by_layer(sets).axes
    assert total.lines[0].get_xdata().tolist() == [5, 4, 3, 2]
    assert image.images[0].get_array()[:, 0].tolist() == [4, 3, 2, 1]

    strip, overlap, _ = plots.clustered_overlap(sets).axes
    names = [label.get_text() for label in strip.get_yticklabels()]
    assert {*names[:2]} in ({"Yoruba", "Icelandic"}, {"English", "Georgian"}), "sets that overlap are neighbours"
    shown = overlap.images[0].get_array()
    places = [names.index(name) for name in ("Yoruba", "Icelandic")]
    assert shown[places[0], places[1]] == pytest.approx(2 / 3)

    test = {"rho": -0.5, "low": -0.7, "high": -0.2, "p": 0.01}
    facts = ["tokens_per_byte", "wikipedia_articles"]
    panels = plots.neurons_against(about, facts, {"5": dict.fromkeys(facts, test)}).axes
    assert panels[0].get_title(loc="left") == "rho -0.50 (-0.70 to -0.20)"
    assert panels[0].lines[0].get_xydata().tolist() == [
        [x["tokens_per_byte"], x["neurons"]["5"]] for x in about.values()
    ]
    assert len(panels[1].lines[0].get_xdata()) == 3, "a language without the fact is left out"
    label = plots.language_map(about, ["yo"]).texts[0]
    assert (label.get_text(), [*label.xy]) == ("YO", about["yo"]["map"])


def test_the_page_is_self_contained(about):
    about["yo"]["name"] = "</script><b>"
    page = interactive_atlas(about, "is")
    data = re.search(r'id="atlas-data">(.*?)</script>', page)[1]
    rows = json.loads(data)
    assert rows["yo"]["name"] == "</script><b>", "data cannot end the script element that contains it"
    assert rows["is"]["nearest"] == [["en", 0.5]]
    assert set(re.findall(r'https?://[^/"]+', page)) == {"https://glottolog.org", "http://www.w3.org"}
    assert not re.search(r"<script[^>]+src=|<link|@import|url\(", page)
    with pytest.raises(ValueError, match="no language 'xx'"):
        interactive_atlas(about, "xx")
