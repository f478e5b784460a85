"""The atlas's neurons switched off, its figures, and its interactive page, on made-up numbers."""

import json
import re

import families
import matplotlib
import numpy
import pytest
import torch

from ssetools import NeuronSets
from study.atlas import effects as atlas_effects
from study.atlas import plots as plots_atlas
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

    monkeypatch.setattr(atlas_effects, "atlas_texts", words)
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


def test_losses_go_on_where_they_stopped(study, word_tokenizer, tmp_path):
    model, sets = study
    path = tmp_path / "losses.json"
    part = atlas_effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path, seconds=-1)
    assert part["rows"] == {}
    whole = atlas_effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path)
    assert list(whole["rows"])[:4] == ["base", "set yo", "control0 yo", "control1 yo"]
    assert whole["rows"]["control0 yo"] != whole["rows"]["control1 yo"], "two draws"
    assert numpy.array(whole["rows"]["base"]).shape == (4, atlas_effects.WINDOWS)
    assert whole["rows"]["set yo"] != whole["rows"]["base"]
    before = path.stat().st_mtime_ns
    assert atlas_effects.deactivation_losses(model, word_tokenizer, sets, LANGS, path) == whole
    assert path.stat().st_mtime_ns == before, "nothing was measured again"
    with pytest.raises(ValueError, match="made for another model, other languages"):
        atlas_effects.deactivation_losses(model, word_tokenizer, sets, LANGS[:2], path)


def test_declarations_are_scored_once(study, word_tokenizer, tmp_path, monkeypatch):
    model, _ = study
    monkeypatch.setattr(atlas_effects, "_windows", lambda *a: torch.arange(3, 90).view(3, 29))
    found = atlas_effects.score_declarations(model, word_tokenizer, LANGS, tmp_path / "scores.json")
    assert found["yo"]["words"] == 660
    assert found["yo"]["tokens"] == 720, "a newline after each document"
    monkeypatch.setattr(atlas_effects, "window_losses", lambda *a: pytest.fail("scored again"))
    assert atlas_effects.score_declarations(model, word_tokenizer, LANGS, tmp_path / "scores.json") == found


def made_up_losses(fails="ka"):
    rng = numpy.random.default_rng(0)
    rows = {"base": numpy.full((4, 6), 3.0)}
    for i, lang in enumerate(LANGS):
        added = numpy.zeros((4, 6))
        added[i] = 0.0 if lang == fails else 1.0
        if lang == "is":
            added[LANGS.index("en")] = 2.0  # Icelandic's set does English more harm than its own
        rows[f"set {lang}"] = 3.1 + added + 0.05 * rng.normal(size=(4, 6))
        for k in range(atlas_effects.CONTROLS):
            rows[f"control{k} {lang}"] = 3.1 + 0.05 * rng.normal(size=(4, 6))
    return {"languages": LANGS, "rows": {name: row.tolist() for name, row in rows.items()}}


def test_specificity_finds_the_set_that_fails():
    found = atlas_effects.specificity(made_up_losses(), resamples=200)
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
    table = atlas_effects.effect_table(made_up_losses())
    assert table.loc["yo", "yo"] > 0.8
    assert table.loc["is", "en"] > 1.8
    assert abs(table.loc["en", "is"]) < 0.2, "rows are sets, columns are languages"


def test_figures(about):
    found = {**made_up_losses(), "specificity": atlas_effects.specificity(made_up_losses(), resamples=50)}
    assert len(plots_atlas.specificity(found).get_yticklabels()) == 4
    assert plots_atlas.effects(found).get_xticklabels()[0].get_text() == "Yoruba"
    sets = NeuronSets({lang: [[k, k + 1, 30], [5]] for k, lang in enumerate(LANGS)}, 48)
    assert len(plots_atlas.clustered_overlap(sets).axes) == 3
    one = {"rho": -0.5, "low": -0.7, "high": -0.2, "p": 0.01}
    facts = ["tokens_per_byte", "wikipedia_articles"]
    figure = plots_atlas.neurons_against(about, facts, {"5": dict.fromkeys(facts, one)})
    assert figure.axes[0].get_title(loc="left") == "rho -0.50 (-0.70 to -0.20)"
    interval = {"jaccard": 0.5, "low": 0.4, "high": 0.6}
    pairs = {pair: dict.fromkeys(LANGS, interval) for pair in ("13/50", "50/all", "13/all")}
    assert plots_atlas.selections({"groups": {"13": " ".join(LANGS)}, "jaccard": {"5": pairs}}).get_ylim() == (0, 1)
    part = {"200": dict.fromkeys(LANGS, interval), "400": dict.fromkeys(LANGS, interval)}
    assert len(plots_atlas.stability({"1": part, "5": part}, {"1": part, "5": part}).axes[0].lines) == 2
    assert len(plots_atlas.neurons_by_layer(sets).axes) == 3
    kinds = {"within_first": 0.6, "within_second": 0.5, "across": 0.3}
    assert plots_atlas.kinds({"5": {**dict.fromkeys(LANGS, kinds), "mean": kinds}}).get_xlim() == (0, 1)
    assert plots_atlas.language_map(about, ["yo"]).texts[0].get_text() == "YO"


def test_the_page_is_self_contained(about):
    about["yo"]["name"] = "</script><b>"
    page = interactive_atlas(about, "is")
    data = re.search(r'id="atlas-data">(.*?)</script>', page)[1]
    rows = json.loads(data)
    assert rows["yo"]["name"] == "</script><b>", "data cannot end the element that it stands in"
    assert rows["is"]["nearest"] == [["en", 0.5]]
    assert set(re.findall(r'https?://[^/"]+', page)) == {"https://glottolog.org", "http://www.w3.org"}
    assert not re.search(r"<script[^>]+src=|<link|@import|url\(", page)
    with pytest.raises(ValueError, match="no language 'xx'"):
        interactive_atlas(about, "xx")
