"""The comparison at equal harm: text apart, sentences alone, a scale under each limit, a run from start to end."""

from __future__ import annotations

import math
from dataclasses import replace

import families
import pytest
import torch

from ssetools import profile_languages
from ssetools.files import read_json
from ssetools.loss import token_losses
from ssetools.training.loop import TrainingSettings
from ssetools.training.methods import METHODS
from study.harm import recipes, run, score, summary, text
from study.harm.recipes import Recipe
from study.harm.tables import differences, gain_by_drift, mean_over_languages, read_results

TARGETS, SERVED = ("yo", "is"), ("en",)
CODES = {"yo": "yor_Latn", "is": "isl_Latn", "en": "eng_Latn"}


def sentence(lang, i):
    start = 3 + 30 * list(CODES).index(lang)
    return " ".join(f"w{start + (i * i + 3 * k) % 29}" for k in range(14)) + " ."


@pytest.fixture
def real_text(tmp_path):
    """Three made-up languages in the layout of the three folders."""
    for lang, code in CODES.items():
        (tmp_path / "corpora" / lang).mkdir(parents=True)
        lines = [sentence(lang, i) for i in range(1500)]
        (tmp_path / "corpora" / lang / "news.txt").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "ntrex").mkdir(exist_ok=True)
        (tmp_path / "ntrex" / f"{lang}.txt").write_text("\n".join(sentence(lang, 5000 + i) for i in range(50)))
        folder = tmp_path / "sib200" / "data" / code
        folder.mkdir(parents=True)
        for split, first in (("validation", 6000), ("test", 7000)):
            rows = [f"{i}\tnone\t{sentence(lang, first + i)}" for i in range(50)]
            (folder / f"{split}.tsv").write_text("index_id\tcategory\ttext\n" + "\n".join(rows), encoding="utf-8")
    return text.RealText(tmp_path / "corpora", tmp_path / "ntrex", tmp_path / "sib200")


@pytest.fixture
def study(tmp_path, real_text, word_tokenizer, monkeypatch):
    def get_profile(model, tokenizer, runs):
        texts = {lang: [sentence(lang, i) for i in range(40)] for lang in CODES}
        return profile_languages(model, tokenizer, texts, 400, window=16)

    for place, value in (
        ("study.harm.text.TARGET_LANGUAGES", TARGETS),
        ("study.harm.score.TARGET_LANGUAGES", TARGETS),
        ("study.harm.score.CONTRAST_LANGUAGES", SERVED),
        ("study.harm.run.CONTRAST_LANGUAGES", SERVED),
        ("study.harm.select.get_profile", get_profile),
        ("study.harm.run.load_model", lambda name, load_in_8bit: (families.tiny_model("llama"), word_tokenizer)),
        ("study.harm.run.quantization_of", lambda model: "int8"),
        ("study.harm.run.model_revision", lambda name: "one"),
        ("ssetools.evaluation.drift.load_texts", lambda source, lang, split: [sentence(lang, i) for i in range(9)]),
        ("study.harm.select.load_texts", lambda source, lang, split: [sentence(lang, i) for i in range(9)]),
        ("study.harm.select.PROFILED_LANGUAGES", CODES),
    ):
        monkeypatch.setattr(place, value)
    return run.Study("tiny", real_text, tmp_path / "results", str(tmp_path / "runs"))


def test_blocks_of_one_split_are_in_no_other(real_text):
    parts = {split: set(real_text._blocks("yo", split)) for split in ("train", "validation", "test")}
    assert all(parts.values())
    assert not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]


def test_training_text_leaves_out_lines_that_are_scored(real_text):
    path = real_text.corpora / "yo" / "news.txt"
    scored = "this sentence of fifty letters and more stands in both of the two texts ."
    path.write_text(scored + "\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    ntrex = real_text.ntrex / "yo.txt"
    ntrex.write_text(ntrex.read_text(encoding="utf-8") + "\n" + scored, encoding="utf-8")
    blocks, left_out = real_text.training("yo")
    assert left_out == 1
    assert not any(scored in block for block in blocks)


def test_the_placebo_is_text_of_the_other_languages_alone(real_text, monkeypatch):
    monkeypatch.setattr("study.harm.text.TARGET_LANGUAGES", ("yo", "is", "en"))
    mixed = real_text.other_languages("yo", characters=5000)
    own = set(real_text._blocks("yo", "train"))
    assert mixed
    assert not own & set(mixed)
    assert sum(map(len, mixed)) >= 2 * 5000


def test_a_sentence_in_a_padded_batch_scores_as_it_does_alone(word_tokenizer):
    model = families.tiny_model("llama")
    texts = ["w3 w4 w5", "w9", "w10 w11 w12 w13 w14 w15 w16"]
    batched = score.sentence_losses(model, word_tokenizer, texts)
    for words, loss in zip(texts, batched, strict=True):
        ids = torch.tensor([[2, *word_tokenizer(words, add_special_tokens=False)["input_ids"]]])
        assert loss == pytest.approx(token_losses(model, ids).sum().item(), rel=1e-5)


def curve(gain, served, neighbours, drift):
    """Measures that grow with the scale as a straight line, drift as its square."""
    return [
        {
            "scale": s,
            "target": gain * s,
            "served": {"en": served * s},
            "neighbours": neighbours * s,
            "drift": drift * s * s,
        }
        for s in (0, *run.GRID)
    ]


def test_the_chosen_scale_is_the_largest_gain_under_the_limit(monkeypatch):
    monkeypatch.setattr(run, "CONTRAST_LANGUAGES", SERVED)
    assert run.choose_scale(curve(-0.5, 0.005, 0.02, 0.08), {}) == 1
    assert run.choose_scale(curve(-0.5, 0.02, 0.02, 0.08), {}) == 0.5, "the mean of the others may lose 1%"
    assert run.choose_scale(curve(-0.5, 0.005, 0.02, 0.08), {"drift": 0.02}) == 0.5
    assert run.choose_scale(curve(-0.5, 0.005, 0.02, 0.08), {"neighbours": 0.0}) == 0
    assert run.choose_scale(curve(0.5, 0.0, 0.0, 0.08), {}) == 0, "a run that gains nothing is switched off"


def test_names_of_recipes_are_file_names_that_tell_them_apart():
    every = [
        r
        for table in ("candidates", "comparison", "placebo", "rates", "seeds", "amounts")
        for _, r in recipes.runs_of(table)
    ]
    assert len({r.name for r in every}) == len(set(every))
    assert all(
        name.replace("_", "").replace("-", "").replace("+", "").replace(".", "").isalnum()
        for name in {r.name for r in every}
    )


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "specific top 3", "share": 0.2},
        {"selection": "specific top 3", "share": 0.2, "decorrelated": True},
        {"selection": "specific mean", "share": 0.3, "projections": ("down",)},
        {"selection": "random", "share": 0.2, "text": "placebo"},
        {"selection": "lape", "share": None},
        {"method": "lora", "share": None, "rank": 2},
        {"method": "full", "share": None},
    ],
)
def test_a_run_is_made_once_and_its_tables_read_it(study, options, monkeypatch):
    recipe = Recipe(learning_rate=0.01, tokens=2048, **options)
    assert study.make("yo", recipe)
    made = read_json(study.path("yo", recipe))
    if recipe.text == "own":
        assert made["training"]["tokens"] == 2048
    assert made["curve"][0]["drift"] == 0
    assert made["curve"][-1]["drift"] > 0
    if options.get("text") != "placebo":
        assert made["curve"][-1]["target"] < 0, "the trained language gains"
    monkeypatch.setattr(study, "_run", lambda *a: pytest.fail("made twice"))
    assert not study.make("yo", recipe)
    rows = read_results(study.results.parent, "tiny")
    assert set(rows["limit"]) == set(run.LIMITS)
    at_zero = rows[rows["scale"] == 0]
    assert (at_zero["gain"] == 0).all()
    assert not any(math.isnan(x) for x in rows["gain"])


def test_differences_are_paired_by_language(study):
    first, other = (
        Recipe(selection=s, share=0.2, learning_rate=0.01, tokens=1024) for s in ("specific mean", "random")
    )
    for lang in TARGETS:
        assert study.make(lang, first)
    assert study.make("yo", other)
    rows = read_results(study.results.parent, "tiny")
    assert mean_over_languages(rows).loc[(first.name.rsplit("_", 1)[0], "general"), "languages"] == 2
    table = differences(rows, first.name.rsplit("_", 1)[0])
    assert (table["languages"] == 1).all(), "only the language that both have"


def test_the_gain_under_a_drift_is_read_off_the_curve(monkeypatch):
    monkeypatch.setattr(run, "CONTRAST_LANGUAGES", SERVED)
    made = {"curve": curve(-0.5, 0.005, 0.02, 0.08)}
    assert gain_by_drift(made, [0.02, 0.08, 1.0]) == pytest.approx([-25, -50, -50])
    assert run.read_along(made["curve"], "target", [0.5]) == pytest.approx([-0.25])


def test_the_summary_compares_on_the_languages_that_every_recipe_has(study, monkeypatch):
    lape = Recipe(selection="lape", share=None, learning_rate=0.01, tokens=1024)
    specific = Recipe(selection="specific mean", share=0.2, learning_rate=0.01, tokens=1024)
    monkeypatch.setattr(summary, "NAMES", {specific.label: "specific", lape.label: "lape"})
    monkeypatch.setattr(summary, "COMPARED", (specific, lape))
    monkeypatch.setattr(summary, "SEARCHED", TARGETS)
    monkeypatch.setattr(summary, "_COMMON", 1)
    for lang, recipe in (("yo", specific), ("is", specific), ("yo", lape), ("yo", replace(lape, text="placebo"))):
        assert study.make(lang, recipe)
    found = summary.summarise(study.results.parent, "tiny")
    rows = read_results(study.results.parent, "tiny").set_index(["recipe", "language", "text", "limit"])
    gains = {r: rows.loc[(r.label, "yo", "own", "general"), "gain"] for r in (specific, lape)}
    assert found["languages"] == ["yo"], "the comparison leaves out the language that one recipe lacks"
    assert found["recipes"]["lape"]["means"]["general"]["gain"]["mean"] == pytest.approx(gains[lape], abs=1e-3)
    assert len(found["recipes"]["lape"]["curve"]) == len(found["drifts"])
    assert found["recipes"]["lape"]["curve"] == sorted(found["recipes"]["lape"]["curve"], reverse=True)
    difference = found["differences"]["specific"]["lape"]["general"]["mean"]
    assert difference == pytest.approx(gains[specific] - gains[lape], abs=1e-3)
    assert set(found["by_language"]) == {"yo", "is"}
    placebo = rows.loc[(lape.label, "yo", "placebo", "general"), "gain"]
    assert found["beyond_placebo"]["lape"]["general"]["mean"] == pytest.approx(gains[lape] - placebo, abs=1e-3)
    assert found["winner"]["recipe"] in ("specific", "lape")
    assert found["runs"] == 4


def test_the_methods_have_the_rates_and_the_batch_of_the_study():
    of_study = {recipe.label: recipe for recipe in recipes.COMPARED}
    for label, name in recipes.NAMES.items():
        method = {"specific-mean": "specific", "lora-32": "lora", "lora": "lora-equal"}.get(name, name)
        assert METHODS[method].learning_rate == of_study[label].learning_rate, name
        assert TrainingSettings().batch_size == of_study[label].batch_size
