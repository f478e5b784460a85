"""The comparison on a tiny model: equal conditions, resumed without repeating runs, alone or beside another process."""

from __future__ import annotations

import json
import threading
import time

import families
import pytest

from ssetools import profile_languages
from study.compare import comparison as comparison_module
from study.compare import plots
from study.compare.__main__ import main
from study.compare.comparison import Comparison
from study.compare.effects import changes, paired_differences, values_by_unit
from study.compare.results import read_results
from study.compare.runs import SEARCH, SEEDS, RunSettings, read_run, seed_of
from study.compare.summary import write_summary

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
        ("study.compare.comparison.quantization_of", lambda model: "int8" if loads[-1] else None),
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
    assert {len(rates) for rates in SEARCH.values()} == {6}
    assert {round(rates[3] / rates[0]) for rates in SEARCH.values()} == {27}


def test_every_method_is_run_once_under_equal_conditions(comparison, tmp_path, monkeypatch):
    runs = comparison.run_language("yo", ["full", "lape", "random"], seeds=(0, 1))
    assert [(run["settings"]["method"], run["settings"]["seed"]) for run in runs] == [
        *[("lape", 0), ("lape", 1), ("random", 0), ("random", 1)],
        *[("full", 0), ("full", 1)],
    ]
    assert comparison.loads == [True, False], "each base is loaded once"
    assert len({run["history"][-1]["tokens"] for run in runs}) == 1, "the same amount of text for each"
    assert {run["load_in_8bit"] for run in runs if run["settings"]["method"] == "full"} == {False}
    assert not list((tmp_path / "runs").rglob("adapter.json")), "adapters are deleted once they are scored"
    scored = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*-seed0.json")]
    assert sum("after" in run for run in scored) == 3 * 6, "every rate of the search"
    assert "folder" not in next((tmp_path / "results").rglob("lape-*.json")).read_text(), "no paths in results"

    monkeypatch.setattr("study.compare.comparison.finetune", lambda *a, **k: pytest.fail("trained twice"))
    again = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    assert again.run_language("yo", ["full", "lape", "random"], seeds=(0, 1)) == runs

    bases = comparison.base_scores("yo")
    table = changes(runs, bases, "yo")
    assert set(table.method) == {"lape", "random", "full"}
    assert set(table.measure) >= {"target, sentences", "drift"}
    assert (table[table.measure == "drift"].value >= 0).all()
    paired = paired_differences(runs, bases, "yo")
    assert set(paired.method) == {"random", "full"}
    difference = paired.set_index(["method", "measure"]).loc[("full", "target, sentences")]
    value = table.set_index(["method", "measure"]).value
    ratio = (1 + value["full", "target, sentences"] / 100) / (1 + value["lape", "target, sentences"] / 100)
    assert difference.value == pytest.approx(100 * (ratio - 1))
    with pytest.raises(ValueError, match="There is no run of lora in 'yo'"):
        paired_differences(runs, bases, "yo", reference="lora")


def test_a_rate_that_diverges_is_recorded_and_not_chosen(comparison, tmp_path, monkeypatch, capsys):
    train = comparison_module.finetune

    def diverging(*args, learning_rate, **options):
        if learning_rate == SEARCH["lape"][-1]:
            raise FloatingPointError("The loss is nan at step 3")
        return train(*args, learning_rate=learning_rate, **options)

    monkeypatch.setattr(comparison_module, "finetune", diverging)
    runs = comparison.run_language("yo", ["lape"])
    assert len(runs) == len(SEEDS)
    assert "The loss is nan at step 3" in capsys.readouterr().out
    assert comparison.search_table("yo", ["lape"]).validation_loss.iloc[-1] == float("inf")
    assert len(comparison.score_every_rate("yo", "lape")) == len(SEARCH["lape"]) - 1
    with pytest.raises(FloatingPointError):
        comparison.train("yo", RunSettings("lape", SEARCH["lape"][-1], seed=1))
    summary = write_summary(comparison.results.parent, "tiny")
    for path in (tmp_path / "results").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    search = json.loads(summary.read_text())["languages"]["yo"]["search"]
    assert [row["validation_loss"] is None for row in search] == [False] * 5 + [True]
    results = read_results(comparison.results.parent, "tiny", "yo")
    assert "not scored at every rate" not in results.missing[0], "the rate that diverged cannot be scored"
    assert results.search.validation_loss.iloc[-1] == float("inf")
    plots.rate_search({"yo": results})


def test_a_method_that_diverges_at_every_rate_is_an_error_with_a_remedy(comparison, monkeypatch):
    def diverging(*args, **options):
        raise FloatingPointError("The loss is nan at step 3")

    monkeypatch.setattr(comparison_module, "finetune", diverging)
    for _ in range(2):  # also when the result files exist
        with pytest.raises(FloatingPointError, match=r"lape diverged in yo at every rate .*Add lower rates"):
            comparison.run_language("yo", ["lape"])
    with pytest.raises(FloatingPointError, match="cannot be scored: The loss is nan"):
        comparison.score("yo", RunSettings("lape", SEARCH["lape"][0]))
    results = read_results(comparison.results.parent, "tiny", "yo")
    assert not results.search.chosen.any()
    assert results.runs == []


def test_results_saved_under_the_former_name_of_the_settings_are_read(tmp_path):
    path = tmp_path / "lape-lr1.0e-03-seed0.json"
    path.write_text('{"arm": {"method": "lape", "learning_rate": 0.001}, "best_step": 8}')
    assert read_run(path) == {"settings": {"method": "lape", "learning_rate": 0.001}, "best_step": 8}


def test_results_of_another_protocol_are_refused(comparison, monkeypatch):
    settings = RunSettings("lape", 1e-3, max_tokens=320)
    comparison.train("yo", settings)
    monkeypatch.setattr("study.compare.comparison.default_source", lambda: "other text")
    with pytest.raises(ValueError, match="protocol.train: .made up., wanted .other text."):
        comparison.train("yo", settings)


def test_a_run_on_other_hardware_is_compared_with_a_base_scored_there(comparison, monkeypatch):
    here = comparison.score("yo", RunSettings("lape", 1e-3, seed=0, max_tokens=160))
    other = comparison_module.provenance() | {"hardware": "another"}
    monkeypatch.setattr("study.compare.comparison.provenance", lambda: other)
    runs = [here, *(comparison.score("yo", RunSettings("lape", 1e-3, seed, max_tokens=160)) for seed in (1, 2))]
    assert [run["base"] for run in runs] == ["base-8bit.json", "base-8bit-2.json", "base-8bit-2.json"]
    bases = comparison.base_scores("yo")
    losses = bases["base-8bit-2.json"]["sentences"]["yo"]["window_losses"]
    losses[:] = [window + 50 for window in losses]
    values, _ = values_by_unit(runs, bases, "yo", "target, sentences")
    assert values[1:].max() < values[0].min() - 0.1, "each run is compared with its own base"


def test_a_lost_adapter_is_trained_again_to_the_same_loss(comparison):
    settings = RunSettings("lape", 1e-2, max_tokens=320)
    first = comparison.train("yo", settings)
    comparison._adapter_folder("yo", settings).rename(comparison._adapter_folder("yo", settings).with_name("gone"))
    assert comparison.score("yo", settings)["validation_loss"] == first["validation_loss"]


def test_ablations_train_other_neurons_under_other_names(comparison):
    all_settings = [
        RunSettings("lape", 1e-3, max_tokens=160),
        RunSettings("lape", 1e-3, max_tokens=160, top_rate=0.3),
        RunSettings("lape", 1e-3, max_tokens=160, budget=0.2),
    ]
    assert len({settings.name for settings in all_settings}) == 3
    sizes = [comparison.train("yo", settings)["parameters"] for settings in all_settings]
    assert len(set(sizes)) == 3


def test_the_command_makes_every_run_once_and_prints_what_it_skips(comparison, tmp_path, monkeypatch, capsys):
    few = {"top_rate": (0.01, 0.05), "max_tokens": (16_384,), "budget": (None, 0.01)}
    monkeypatch.setattr("study.compare.runs.ABLATIONS", few)
    folders = ["--model", "tiny", "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    methods = ["--methods", "lape", "random", "--other-text", "sib200:folder"]
    assert main(["yo", "--ablations", *folders, *methods, "--seeds", "0", "1"]) is None
    assert main(["is", "--like", "yo", *folders, *methods]) is None
    said = capsys.readouterr().out
    assert "top0.01-lr" in said
    assert "skipped, the selection has no neurons of 'yo'" in said
    files = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    assert sum("budget0.01" in path.name for path in files) == 2
    assert len({path.name for path in files if path.parent.name == "is"}) == 2 + 1, "a run of each method, and the base"
    assert seed_of("is") not in (*SEEDS, seed_of("mt")), "otherwise every language would train the same random neurons"
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
    assert summary["languages"]["is"]["methods"]["random"]["seeds"] == [seed_of("is")]


def test_two_processes_that_need_the_same_run_train_it_once(comparison, tmp_path, monkeypatch):
    trained, real = [], comparison_module.finetune

    def finetune(*args, **kwargs):
        trained.append(kwargs["seed"])
        time.sleep(0.5)
        return real(*args, **kwargs)

    monkeypatch.setattr("study.compare.comparison.finetune", finetune)
    settings = RunSettings("lape", 1e-3, max_tokens=160)
    second = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    other = threading.Thread(target=second.train, args=("yo", settings))
    other.start()
    run = comparison.train("yo", settings)
    other.join()
    assert trained == [0]
    assert run["settings"] == second.train("yo", settings)["settings"]


def test_results_of_another_revision_of_the_model_are_refused(comparison, tmp_path, monkeypatch):
    made = comparison.score("yo", RunSettings("lape", 1e-3, max_tokens=160))
    assert (made["model"], made["revision"]) == ("tiny", "one")
    monkeypatch.setattr("study.compare.comparison.model_revision", lambda name: "two")
    again = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    with pytest.raises(ValueError, match="revision: 'one', wanted 'two'.*Name another folder with --results"):
        again.score("yo", RunSettings("lape", 1e-3, max_tokens=160))
    other = again.score("yo", RunSettings("lape", 1e-4, max_tokens=160))
    assert (made["base"], other["base"]) == ("base-8bit.json", "base-8bit-2.json"), (
        "each run has a base of its own revision"
    )


def test_processes_with_different_runs_of_a_language_do_not_wait_for_each_other(comparison, tmp_path, monkeypatch):
    both, met, real = threading.Barrier(2, timeout=30), [], comparison_module.finetune

    def finetune(*args, **kwargs):
        both.wait()  # breaks unless the other run trains at the same time
        met.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr("study.compare.comparison.finetune", finetune)
    second = Comparison("tiny", tmp_path / "results", tmp_path / "runs", other_text="sib200:folder")
    for each in (comparison, second):  # loading in two threads would interleave their random weights
        each._load(True)
    other = threading.Thread(target=second.train, args=("yo", RunSettings("random", 1e-3, max_tokens=160)))
    other.start()
    comparison.train("yo", RunSettings("lape", 1e-3, max_tokens=160))
    other.join()
    assert met == [True, True]
