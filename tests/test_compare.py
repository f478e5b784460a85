"""The comparison on a tiny model: same terms, resumed and not redone; intervals that know what they are told."""

from __future__ import annotations

import families
import pytest
import torch

from ssetools import profiling
from ssetools.compare import Arm, Comparison
from ssetools.effects import costs, differences, effects, interval, verdicts
from ssetools.methods import METHODS

LANGS = ["yo", "is", "en"]


@pytest.fixture
def comparison(tmp_path, word_tokenizer, monkeypatch):
    def load_texts(source, lang, split):
        start = 3 + 30 * LANGS.index(lang)
        return [" ".join(f"w{start + (i * i + 3 * k) % 29}" for k in range(20)) for i in range(40)]

    def get_profile(model, tokenizer, runs):
        texts = {lang: load_texts("", lang, "train") for lang in LANGS}
        return profiling.profile_languages(model, tokenizer, texts, 400, window=16)

    loads = []

    def load_model(name, load_in_8bit):
        loads.append(load_in_8bit)
        return families.tiny_model("llama"), word_tokenizer

    for where, name, value in (
        ("compare", "load_model", load_model),
        ("compare", "load_texts", load_texts),
        ("compare", "get_profile", get_profile),
        ("compare", "default_source", lambda: "made up"),
        ("compare", "has_8bit_layers", lambda model: loads[-1]),
        ("compare", "PROFILED_LANGUAGES", LANGS),
        ("compare", "CONTRAST_LANGUAGES", ["en"]),
        ("compare", "_TRAINING", {"window": 16, "batch_size": 2, "validate_every": 4, "checkpoint_every": 10**9}),
        ("divergence", "load_texts", load_texts),
    ):
        monkeypatch.setattr(f"ssetools.{where}.{name}", value)
    made = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    made.loads = loads
    return made


def test_every_method_may_try_as_many_rates():
    assert {len(method.search) for method in METHODS.values()} == {4}
    assert {round(method.search[3] / method.search[0]) for method in METHODS.values()} == {27}


def test_a_comparison_is_made_once_on_equal_terms_and_told_apart(comparison, tmp_path, monkeypatch):
    runs = comparison.language("yo", ["full", "lape", "random"], seeds=(0, 1))
    assert [(run["arm"]["method"], run["arm"]["seed"]) for run in runs] == [
        *[("lape", 0), ("lape", 1), ("random", 0), ("random", 1)],
        *[("full", 0), ("full", 1)],
    ]
    assert comparison.loads == [True, False], "each base is loaded once"
    assert len({run["history"][-1]["tokens"] for run in runs}) == 1, "as much text for each"
    assert {run["load_in_8bit"] for run in runs if run["arm"]["method"] == "full"} == {False}
    assert not list((tmp_path / "runs").rglob("adapter.json")), "scored adapters are cleared away"
    assert "folder" not in next((tmp_path / "results").rglob("lape-*.json")).read_text(), "no paths in results"

    monkeypatch.setattr("ssetools.compare.finetune", lambda *a, **k: pytest.fail("trained twice"))
    again = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    assert again.language("yo", ["full", "lape", "random"], seeds=(0, 1)) == runs

    bases = comparison.bases("yo")
    table = effects(runs, bases, "yo")
    assert set(table.method) == {"lape", "random", "full"}
    assert set(table.measure) >= {"target, sentences", "drift"}
    assert (table[table.measure == "drift"].value >= 0).all()
    paired = differences(runs, bases, "yo")
    assert set(paired.method) == {"random", "full"}
    one = paired.set_index(["method", "measure"]).loc[("full", "target, sentences")]
    own = table.set_index(["method", "measure"]).value
    ratio = (1 + own["full", "target, sentences"] / 100) / (1 + own["lape", "target, sentences"] / 100)
    assert one.value == pytest.approx(100 * (ratio - 1))
    assert len(verdicts(paired, "drift")) == 2


def test_another_protocol_is_not_mixed_in(comparison, monkeypatch):
    arm = Arm("lape", 1e-3, max_tokens=320)
    comparison.trained("yo", arm)
    monkeypatch.setattr("ssetools.compare.default_source", lambda: "other text")
    with pytest.raises(ValueError, match="another protocol"):
        comparison.trained("yo", arm)


def test_a_lost_adapter_is_trained_again_to_the_same_loss(comparison):
    arm = Arm("lape", 1e-2, max_tokens=320)
    first = comparison.trained("yo", arm)
    comparison._folder("yo", arm).rename(comparison._folder("yo", arm).with_name("gone"))
    assert comparison.scored("yo", arm)["validation_loss"] == first["validation_loss"]


def test_ablations_train_other_neurons_under_other_names(comparison):
    arms = [
        Arm("lape", 1e-3, max_tokens=160),
        Arm("lape", 1e-3, max_tokens=160, top_rate=0.3),
        Arm("lape", 1e-3, max_tokens=160, budget=0.2),
    ]
    assert len({arm.name for arm in arms}) == 3
    sizes = [comparison.trained("yo", arm)["parameters"] for arm in arms]
    assert len(set(sizes)) == 3


def test_the_figures_show_every_method(comparison):
    from ssetools import plots_compare

    runs = comparison.language("yo", ["lape", "random"], seeds=(0, 1))
    found = {"yo": (runs, comparison.bases("yo"))}
    for figure in (
        plots_compare.plane(found),
        plots_compare.plane(found, kept="drift"),
        plots_compare.distance(found, "drift"),
        plots_compare.search({"yo": comparison.searched("yo", ["lape", "random"])}),
    ):
        text = " ".join(t.get_text() for t in figure.findobj(lambda x: hasattr(x, "get_text")))
        assert "Yoruba" in text
        assert "random" in text
    assert list(costs(runs).index) == ["lape", "random"]


def test_intervals_cover_known_means():
    torch.manual_seed(0)
    values = 0.5 + 0.1 * torch.randn(3, 200, dtype=torch.float64)
    mean, low, high = interval(values, torch.ones(200, dtype=torch.float64))
    assert low < 0.5 < high
    assert low < mean < high
    assert high - low < 0.05
    weights = torch.tensor([0.0] * 199 + [1.0], dtype=torch.float64)
    assert interval(values, weights)[0] == pytest.approx(values[:, -1].mean().item())


def test_verdicts_say_who_is_better_or_that_nobody_is():
    import pandas

    table = pandas.DataFrame(
        [["a", "drift", 1.0, 0.5, 2.0, 3], ["b", "drift", -1.0, -2.0, -0.5, 3], ["c", "drift", 0.0, -1.0, 1.0, 3]],
        columns=["method", "measure", "value", "low", "high", "seeds"],
    )
    said = verdicts(table, "drift")
    assert "lape is better than a" in said[0]
    assert "b is better than lape" in said[1]
    assert "cannot be told" in said[2]
