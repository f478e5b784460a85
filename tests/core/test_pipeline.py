"""The steps of a study on a tiny model and a folder of made-up languages: found, made, refused, reported."""

import itertools
import json
import math
import random
import shutil
from pathlib import Path

import families
import hub_layouts
import pytest
import torch
from made_up_study import LANGS, PROFILE, SETTINGS, trained, words

from ssetools import Subnetwork, cli, deactivated, load_model, perplexity
from ssetools.errors import OutOfMemory, TextUnavailable
from ssetools.evaluation.inside import deactivation_matrix
from ssetools.models import model_revision
from ssetools.report import report
from ssetools.steps import (
    _retention_texts,
    _validation_texts,
    get_metrics,
    get_neurons,
    get_profile,
    get_run,
    neurons_for,
    summarise,
)
from ssetools.text.sources import TextPlan
from ssetools.training import loop


def test_each_step_is_made_once_and_then_found(study, tmp_path, capsys, monkeypatch):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    assert folder.as_posix() == "runs/tiny/yo/specific-seed0"
    assert {p.name for p in folder.iterdir()} == {"adapter.safetensors", "adapter.json", "log.csv"}
    metrics = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert set(metrics["after"]["stories"]) == set(LANGS)
    assert metrics["versions"]["torch"]
    assert metrics["adapter"]["base"]["model"] == "tiny"
    assert metrics["adapter"]["corpus"]["source"] == "text"
    assert metrics["summary"]["stories"]["target"]["percent"] < 0, "the trained language must gain"
    Subnetwork.attached_to(model).detach()
    for step in ("steps.profile_languages", "steps.finetune", "steps.score_languages"):
        monkeypatch.setattr(f"ssetools.{step}", lambda *a, **k: pytest.fail("work was done twice"))
    capsys.readouterr()
    neurons, folder = trained(study)
    assert "Found the adapter" in capsys.readouterr().out
    assert get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS) == json.loads(json.dumps(metrics))


def no_memory_on_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("allocate", [no_memory_on_cuda, lambda: torch.empty(2**50), lambda: bytearray(2**60)])
def test_a_run_without_enough_memory_says_what_it_needs_and_starts_again(study, monkeypatch, allocate):
    model, _, _ = study
    settings = r"Lower batch_size \(2\) or window \(16\), or set checkpoint_activations=True"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "chunked_loss", lambda *_: allocate())
        with pytest.raises(OutOfMemory, match=rf"estimates 0\.\d+ GiB for this run on cpu, .*{settings}"):
            trained(study)
    assert getattr(model, "ssetools_adapter", None) is None
    trained(study)


def test_another_error_of_training_is_raised_as_it_is(study, monkeypatch):
    monkeypatch.setattr(loop, "chunked_loss", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trained(study)


def test_a_clock_that_runs_backwards_changes_nothing(study, monkeypatch):
    model, tokenizer, plan = study
    now = itertools.count(1e9, -3600)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: next(now))
        patch.setattr("tqdm.std.time", lambda: next(now))
        _, folder = trained(study)
        backwards = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert next(now) < 1e9 - 3600, "the clock was read"
    Subnetwork.attached_to(model).detach()
    shutil.rmtree("runs")
    _, folder = trained(study)
    metrics = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert metrics["after"] == backwards["after"]
    assert not [path for path in Path().rglob(".*")], "no scratch file is left"


def test_a_streamed_corpus_trains_from_the_hubs_layout(study, tmp_path):
    model, tokenizer, _ = study
    web = f"glotcc:{tmp_path / 'glotcc'}"
    for lang, code in (("yo", "yor-Latn"), ("is", "isl-Latn"), ("en", "eng-Latn")):
        own = [f"w{3 + 30 * LANGS.index(lang) + k}" for k in range(29)]
        documents = [" ".join(random.Random(i).choices(own, k=30)) for i in range(200)]
        hub_layouts.glotcc(tmp_path / "glotcc", documents, code=code)
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source=web, **PROFILE)
    plan = TextPlan(web, {"web pages": web}, ("web pages",), "made up")
    folder = get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    about = json.loads((folder / "adapter.json").read_text())
    assert about["tokens"] == SETTINGS["max_tokens"]
    assert list((tmp_path / "home" / "tokens").glob("*/tokens.bin")), "the stream is packed into the cache"


def test_the_report_has_gain_retention_size_and_path(study, capsys):
    model, tokenizer, plan = study
    _, folder = trained(study)
    table = report(get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS))
    for part in (
        "Yoruba (yo)",
        "weights trained",
        "% of the model",
        "Yoruba, stories",
        "English, stories",
        str(folder),
    ):
        assert part in table
    shown = table._repr_html_()
    assert shown.count("</tr>") == 1 + len(table.table) > 2
    assert all(f"<td>{cell}</td>" in shown for cell in table.table["change (95% interval)"])
    assert shown.index("weights trained") < shown.index("<table") < shown.index(str(folder)), (
        "the other lines stand around it"
    )
    assert repr(table) == table, "a terminal shows text"
    capsys.readouterr()
    assert cli.main(["report", "yo", "--model", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == table.strip()


def test_the_report_of_english_has_a_row_of_its_own(study):
    _, folder = trained(study)
    model, tokenizer, plan = study
    metrics = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    metrics["summary"] = summarise(metrics["before"], metrics["after"], "en")
    metrics["adapter"]["language"] = "en"
    rows = [line for line in report(metrics).splitlines() if line.startswith("  English, stories")]
    assert len(rows) == 1


def test_files_for_something_else_are_refused_by_name(study):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    Subnetwork.attached_to(model).detach()
    with pytest.raises(ValueError, match=r"profile.* does not match .*\(tokens_per_language: 600, wanted 500\)"):
        get_profile(model, tokenizer, source="text", languages=LANGS, tokens_per_language=500)
    with pytest.raises(ValueError, match="languages: 3, wanted 2; only in one: en"):
        get_profile(model, tokenizer, source="text", languages=LANGS[:2], tokens_per_language=600)
    turned = get_profile(model, tokenizer, source="text", languages=LANGS[::-1], tokens_per_language=600)
    assert turned.languages == LANGS, "another order is the same profile"
    with pytest.raises(ValueError, match="adapter.json does not match .*settings.learning_rate: 0.01, wanted 0.5"):
        get_run(model, tokenizer, "yo", neurons, plan, **{**SETTINGS, "learning_rate": 0.5})
    model.ssetools_source |= {"revision": "another", "weights": "others"}
    with pytest.raises(ValueError, match="does not match .*revision: .*, wanted 'another'"):
        get_profile(model, tokenizer, source="text", **PROFILE)
    with pytest.raises(ValueError, match="were made for weights"):
        get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)


def test_what_was_made_from_other_things_is_made_again(study):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    before = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    Subnetwork.attached_to(model).detach()
    shutil.rmtree(folder)
    Path("runs/tiny/profile.safetensors").unlink()
    other = {**PROFILE, "tokens_per_language": 300}
    again = get_neurons(model, tokenizer, top_rate=0.2, source="text", **other)
    assert again.metadata["tokens_per_language"] == 300, "the sets are those of the profile that is there"
    assert get_neurons(model, tokenizer, top_rate=0.2, source="text", tokens_per_language=300).languages == LANGS

    folder = get_run(model, tokenizer, "yo", neurons, plan, **{**SETTINGS, "learning_rate": 0.05})
    (folder / "metrics.json").write_text(json.dumps(before))  # of the run that was deleted
    fresh = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert fresh["adapter"]["settings"]["learning_rate"] == 0.05
    assert fresh["after"] != before["after"]

    for lang in LANGS:
        path = Path("text") / lang / "test.txt"
        path.write_text(path.read_text().replace("w4 ", "w5 ").replace("w35 ", "w36 ").replace("w66 ", "w67 "))
    edited = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    for lang in LANGS:
        assert edited["before"]["stories"][lang]["window_losses"] != fresh["before"]["stories"][lang]["window_losses"]


def test_a_run_of_neurons_that_are_no_longer_selected_is_refused(study):
    model, tokenizer, plan = study
    neurons, _ = trained(study)
    Subnetwork.attached_to(model).detach()
    neurons["yo"][:] = neurons["is"]
    with pytest.raises(ValueError, match="neuron_ids: .* delete the run's folder"):
        get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    Subnetwork.attach(model, neurons["yo"]).detach()  # nothing was left attached


def test_a_run_of_text_that_changed_since_is_refused(study):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    Subnetwork.attached_to(model).detach()
    path = Path("text/yo/train.txt")
    path.write_text(path.read_text() + "\n\nw3 w4 w5")
    with pytest.raises(ValueError, match="yo/specific-seed0/adapter.json does not match .*text: .*, wanted"):
        get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    Subnetwork.attach(model, neurons["yo"]).detach()  # nothing was left attached


@pytest.mark.parametrize(("lang", "word"), [("is", "orð "), ("zh", "汉字"), ("ja", "文字"), ("th", "คำ")])
def test_validation_text_has_about_600_words_in_every_script(monkeypatch, lang, word):
    document = 50 * word
    monkeypatch.setattr("ssetools.steps.load_texts", lambda source, lang, split: [document] * 240)
    assert len(_validation_texts("text", lang)) == 600 / 50


def test_validation_text_of_few_words_is_taken_whole(monkeypatch):
    monkeypatch.setattr("ssetools.steps.load_texts", lambda source, lang, split: ["字", "字"])
    assert _validation_texts("text", "zh") == ["字", "字"]


def test_a_base_of_another_precision_is_scored_anew(study):
    model, tokenizer, plan = study
    _, folder = trained(study)
    first = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    Subnetwork.attached_to(model).detach()
    other, _ = load_model("tiny", dtype="float32" if model.dtype == torch.bfloat16 else "bfloat16", load_in_8bit=False)
    Subnetwork.load(folder, other)
    again = get_metrics(other, tokenizer, "yo", folder, plan, languages=LANGS)
    assert again["before"] != first["before"]
    assert again["after"] != first["after"]


def test_a_folder_is_known_by_what_its_weights_are(study, tmp_path, monkeypatch):
    model, _, _ = study
    revision = model.ssetools_source["revision"]
    neurons, folder = trained(study)
    Subnetwork.attached_to(model).detach()
    assert model_revision("tiny") == revision, "nothing needs to be loaded to know it"
    moved, _ = load_model(str(tmp_path / "tiny"), load_in_8bit=False)
    assert moved.ssetools_source["revision"] == revision
    neurons.check_model(moved)
    Subnetwork.load(folder, moved).detach()  # the same folder by another name
    families.tiny_model("llama", seed=1).save_pretrained("tiny")
    other, _ = load_model("tiny", load_in_8bit=False)
    assert other.ssetools_source["revision"] != revision
    with pytest.raises(ValueError, match="trained for weights"):
        Subnetwork.load(folder, other)


def test_an_automatic_scale_without_text_to_keep_says_how_to_do_without(study, monkeypatch):
    def unreachable(*_, **__):
        raise TextUnavailable("npm failed.")

    monkeypatch.setattr("ssetools.steps._validation_texts", unreachable)
    with pytest.raises(TextUnavailable, match=r"npm failed\. A number as scale, such as 1, needs no text"):
        _retention_texts(study[2], "yo")


def test_a_language_without_neurons_is_refused(study):
    model, tokenizer, _ = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", selection="lape", **PROFILE)
    neurons["is"][:] = [ids[:0] for ids in neurons["is"]]
    with pytest.raises(ValueError, match="No neuron is selected for 'is'"):
        neurons_for(neurons, "is", "lape", 0)
    with pytest.raises(KeyError, match="No neurons for language 'mt'"):
        neurons_for(neurons, "mt", "lape", 0)
    uniform = neurons_for(neurons, "yo", "random-uniform", 3)
    assert sum(map(len, uniform)) == neurons.count("yo")


def test_the_deactivation_matrix_is_what_switching_off_does(study, monkeypatch):
    model, tokenizer, _ = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", selection="lape", **PROFILE)
    monkeypatch.setattr("ssetools.evaluation.inside.load_texts", lambda source, lang, split: words(lang, 10))
    changes = deactivation_matrix(model, tokenizer, neurons, LANGS)
    assert list(changes.index) == [*LANGS, "random"]
    assert list(changes.columns) == LANGS
    before = perplexity(model, tokenizer, words("is", 10), max_tokens=400)
    with deactivated(model, neurons["yo"]):
        after = perplexity(model, tokenizer, words("is", 10), max_tokens=400)
    assert changes.loc["yo", "is"] == pytest.approx(math.log(after / before))
    assert changes.loc["yo", "is"] != 0
