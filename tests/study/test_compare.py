"""The comparison on a tiny model: same terms, resumed and not redone, alone or beside another process."""

from __future__ import annotations

import json
import threading
import time

import families
import pytest

from ssetools import profile_languages
from study.compare import comparison as comparison_module
from study.compare.__main__ import main
from study.compare.comparison import Comparison
from study.compare.effects import differences, effects, values_of
from study.compare.runs import METHODS, SEEDS, Arm, own_seed

LANGS = ["yo", "is", "en"]


@pytest.fixture
def comparison(tmp_path, word_tokenizer, monkeypatch):
    def load_texts(source, lang, split):
        start = 3 + 30 * LANGS.index(lang)
        return [" ".join(f"w{start + (i * i + 3 * k) % 29}" for k in range(20)) for i in range(40)]

    def get_profile(model, tokenizer, runs):
        texts = {lang: load_texts("", lang, "train") for lang in LANGS}
        return profile_languages(model, tokenizer, texts, 400, window=16)

    loads = []

    def load_model(name, load_in_8bit):
        loads.append(load_in_8bit)
        return families.tiny_model("llama"), word_tokenizer

    for place, value in (
        ("study.compare.comparison.load_model", load_model),
        ("study.compare.comparison.load_texts", load_texts),
        ("study.compare.comparison.model_revision", lambda name: "one"),
        ("study.compare.comparison.get_profile", get_profile),
        ("study.compare.comparison.default_source", lambda: "made up"),
        ("study.compare.comparison.has_8bit_layers", lambda model: loads[-1]),
        ("study.compare.comparison.PROFILED_LANGUAGES", LANGS),
        ("study.compare.comparison.CONTRAST_LANGUAGES", ["en"]),
        ("study.compare.comparison._VALIDATION_DOCUMENTS", 8),
        (
            "study.compare.comparison._TRAINING",
            {"window": 16, "batch_size": 2, "validate_every": 4, "checkpoint_every": 10**9},
        ),
        ("ssetools.evaluation.drift.load_texts", load_texts),
    ):
        monkeypatch.setattr(place, value)
    made = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    made.loads = loads
    return made


def test_every_method_may_try_as_many_rates():
    assert {len(method.search) for method in METHODS.values()} == {6}
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
    scored = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*-seed0.json")]
    assert sum("after" in run for run in scored) == 3 * 6, "every rate of the search, to set gain against harm"
    assert "folder" not in next((tmp_path / "results").rglob("lape-*.json")).read_text(), "no paths in results"

    monkeypatch.setattr("study.compare.comparison.finetune", lambda *a, **k: pytest.fail("trained twice"))
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
    with pytest.raises(ValueError, match="lora was not run in 'yo'"):
        differences(runs, bases, "yo", to="lora")


def test_a_rate_that_diverges_is_the_worst_of_its_search_and_stops_nothing(comparison, monkeypatch, capsys):
    train = comparison_module.finetune

    def diverging(*args, learning_rate, **options):
        if learning_rate == METHODS["lape"].search[-1]:
            raise FloatingPointError("The loss is nan at step 3")
        return train(*args, learning_rate=learning_rate, **options)

    monkeypatch.setattr(comparison_module, "finetune", diverging)
    runs = comparison.language("yo", ["lape"])
    assert len(runs) == len(SEEDS)
    assert "The loss is nan at step 3" in capsys.readouterr().out
    assert comparison.searched("yo", ["lape"]).validation_loss.iloc[-1] == float("inf")
    assert len(comparison.traced("yo", "lape")) == len(METHODS["lape"].search) - 1
    with pytest.raises(FloatingPointError):
        comparison.trained("yo", Arm("lape", METHODS["lape"].search[-1], seed=1))


def test_another_protocol_is_not_mixed_in(comparison, monkeypatch):
    arm = Arm("lape", 1e-3, max_tokens=320)
    comparison.trained("yo", arm)
    monkeypatch.setattr("study.compare.comparison.default_source", lambda: "other text")
    with pytest.raises(ValueError, match="another protocol"):
        comparison.trained("yo", arm)


def test_a_run_on_another_machine_is_held_against_a_base_of_that_machine(comparison, monkeypatch):
    here = comparison.scored("yo", Arm("lape", 1e-3, seed=0, max_tokens=160))
    other = comparison_module.provenance() | {"hardware": "another"}
    monkeypatch.setattr("study.compare.comparison.provenance", lambda: other)
    runs = [here, *(comparison.scored("yo", Arm("lape", 1e-3, seed, max_tokens=160)) for seed in (1, 2))]
    assert [run["base"] for run in runs] == ["base-8bit.json", "base-8bit-2.json", "base-8bit-2.json"]
    bases = comparison.bases("yo")
    losses = bases["base-8bit-2.json"]["sentences"]["yo"]["window_losses"]
    losses[:] = [window + 50 for window in losses]
    values, _ = values_of(runs, bases, "yo", "target, sentences")
    assert values[1:].max() < values[0].min() - 0.1, "each run is held against its own base"


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


def test_the_command_makes_everything_once_and_says_what_it_left_out(comparison, tmp_path, monkeypatch, capsys):
    few = {"top_rate": (0.01, 0.05), "max_tokens": (16_384,), "budget": (None, 0.01)}
    monkeypatch.setattr("study.compare.runs.ABLATIONS", few)
    folders = ["--model", "tiny", "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    methods = ["--methods", "lape", "random", "--other-text", "sib200:folder"]
    assert main(["yo", "--ablations", *folders, *methods, "--seeds", "0", "1"]) is None
    assert main(["is", "--like", "yo", *folders, *methods]) is None
    said = capsys.readouterr().out
    assert "top0.01-lr" in said
    assert "left out, no neuron of 'yo'" in said
    files = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    assert sum("budget0.01" in path.name for path in files) == 2
    assert len({path.name for path in files if path.parent.name == "is"}) == 2 + 1, "a run of each method, and the base"
    assert own_seed("is") not in (*SEEDS, own_seed("mt")), "else every language would meet the same random neurons"
    assert {path.name for path in (tmp_path / "runs" / "tiny" / "yo" / "compare").iterdir()} == set()

    monkeypatch.setattr("study.compare.comparison.finetune", lambda *a, **k: pytest.fail("trained twice"))
    assert main(["is", "--like", "yo", *folders, *methods]) is None
    assert main(["yo", "--ablations", *folders, *methods, "--seeds", "0", "1"]) is None
    assert main([*folders]) is None, "no language: only the summary"
    assert {path: path.read_bytes() for path in files} == files
    summary = json.loads((tmp_path / "results" / "tiny" / "summary.json").read_text())
    assert set(summary["languages"]) == {"yo", "is"}
    assert summary["languages"]["is"]["search"] == []
    assert summary["languages"]["yo"]["methods"]["random"]["seeds"] == [0, 1]
    assert summary["languages"]["is"]["methods"]["random"]["seeds"] == [own_seed("is")]


def test_processes_that_meet_at_a_run_make_it_once(comparison, tmp_path, monkeypatch):
    trained, real = [], comparison_module.finetune

    def finetune(*args, **kwargs):
        trained.append(kwargs["seed"])
        time.sleep(0.5)
        return real(*args, **kwargs)

    monkeypatch.setattr("study.compare.comparison.finetune", finetune)
    arm = Arm("lape", 1e-3, max_tokens=160)
    second = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    other = threading.Thread(target=second.trained, args=("yo", arm))
    other.start()
    found = comparison.trained("yo", arm)
    other.join()
    assert trained == [0]
    assert found["arm"] == second.trained("yo", arm)["arm"]


def test_another_state_of_the_model_does_not_go_on_with_what_is_there(comparison, tmp_path, monkeypatch):
    made = comparison.scored("yo", Arm("lape", 1e-3, max_tokens=160))
    assert (made["model"], made["revision"]) == ("tiny", "one")
    monkeypatch.setattr("study.compare.comparison.model_revision", lambda name: "two")
    again = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    with pytest.raises(ValueError, match="made with revision one of tiny, and this is two: name another folder"):
        again.scored("yo", Arm("lape", 1e-3, max_tokens=160))
    other = again.scored("yo", Arm("lape", 1e-4, max_tokens=160))
    assert (made["base"], other["base"]) == ("base-8bit.json", "base-8bit-2.json"), "each is told apart from its own"


def test_processes_on_other_runs_of_a_language_do_not_wait(comparison, tmp_path, monkeypatch):
    both, met, real = threading.Barrier(2, timeout=30), [], comparison_module.finetune

    def finetune(*args, **kwargs):
        both.wait()  # breaks unless the other run trains at the same time
        met.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr("study.compare.comparison.finetune", finetune)
    second = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    for one in (comparison, second):  # two threads drawing weights from one generator would draw other weights
        one._load(True)
    other = threading.Thread(target=second.trained, args=("yo", Arm("random", 1e-3, max_tokens=160)))
    other.start()
    comparison.trained("yo", Arm("lape", 1e-3, max_tokens=160))
    other.join()
    assert met == [True, True]
