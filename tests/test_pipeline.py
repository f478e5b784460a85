"""The steps of a study on a tiny model and a folder of made-up languages: found, made, refused, reported."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import families
import hub_layouts
import pytest
import torch

from ssetools import Subnetwork, cli, deactivated, load_model, load_texts, perplexity
from ssetools.export import model_card, push_to_hub
from ssetools.measuring import deactivation_matrix, get_metrics, summarise
from ssetools.pipeline import get_neurons, get_profile, get_run, neurons_for
from ssetools.report import report
from ssetools.text_plan import TextPlan, plan_texts

LANGS = ["yo", "is", "en"]
PROFILE = {"languages": LANGS, "tokens_per_language": 600}
SETTINGS = {"window": 16, "batch_size": 2, "learning_rate": 0.01, "max_tokens": 320}


def words(lang, count, shift=0):
    """Each made-up language draws on words of its own, so that neurons can tell them apart."""
    start = 3 + 30 * LANGS.index(lang)
    return [" ".join(f"w{start + (i * i + 3 * k + shift) % 29}" for k in range(12)) for i in range(count)]


@pytest.fixture
def study(tmp_path, word_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "home"))
    families.tiny_model("llama").save_pretrained("tiny")
    word_tokenizer.save_pretrained("tiny")
    for lang in LANGS:
        for part, (split, count) in enumerate((("train", 80), ("validation", 8), ("test", 12))):
            path = tmp_path / "text" / lang / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n\n".join(words(lang, count, shift=part)))
    model, tokenizer = load_model("tiny", load_in_8bit=False)
    monkeypatch.setattr("ssetools.measuring.SOURCES", ("text",))  # a corpus that has every language
    plan = TextPlan("text", {"stories": "text"}, ("stories",), "made up")
    return model, tokenizer, plan


def trained(study):
    model, tokenizer, plan = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", **PROFILE)
    folder = get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    return neurons, folder


def test_each_step_is_made_once_and_then_found(study, tmp_path, capsys, monkeypatch):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    assert folder.as_posix() == "runs/tiny/yo/lape-seed0"
    assert {p.name for p in folder.iterdir()} == {"adapter.safetensors", "adapter.json", "log.csv"}
    metrics = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert set(metrics["after"]["stories"]) == set(LANGS)
    assert metrics["versions"]["torch"]
    assert metrics["adapter"]["base"]["model"] == "tiny"
    assert metrics["adapter"]["corpus"]["source"] == "text"
    assert metrics["summary"]["stories"]["target"]["percent"] < 0, "the trained language must gain"
    Subnetwork.attached_to(model).detach()
    for step in ("pipeline.profile_languages", "pipeline.finetune", "measuring.score_languages"):
        monkeypatch.setattr(f"ssetools.{step}", lambda *a, **k: pytest.fail("work was done twice"))
    capsys.readouterr()
    neurons, folder = trained(study)
    assert "Found the adapter" in capsys.readouterr().out
    assert get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS) == json.loads(json.dumps(metrics))


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
    with pytest.raises(ValueError, match=r"was made for something else \(tokens_per_language: 600, wanted 500\)"):
        get_profile(model, tokenizer, source="text", languages=LANGS, tokens_per_language=500)
    with pytest.raises(ValueError, match="languages: 3, wanted 2; only in one: en"):
        get_profile(model, tokenizer, source="text", languages=LANGS[:2], tokens_per_language=600)
    turned = get_profile(model, tokenizer, source="text", languages=LANGS[::-1], tokens_per_language=600)
    assert turned.languages == LANGS, "another order is the same profile"
    with pytest.raises(ValueError, match="other settings .*learning_rate: 0.01, wanted 0.5"):
        get_run(model, tokenizer, "yo", neurons, plan, **{**SETTINGS, "learning_rate": 0.5})
    model.ssetools_source["revision"] = "another"
    with pytest.raises(ValueError, match="something else .revision .*, not 'another'"):
        get_profile(model, tokenizer, source="text", **PROFILE)
    with pytest.raises(ValueError, match="were made for revision"):
        neurons.check_model(model)
    with pytest.raises(ValueError, match="with 2 layers of 48 neurons; this model has 2 layers of 128"):
        neurons.check_model(families.tiny_model("bloom"))


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
    trained(study)
    Subnetwork.attached_to(model).detach()
    Path("runs/tiny/profile.safetensors").unlink()
    again = get_neurons(model, tokenizer, top_rate=0.2, source="text", languages=LANGS, tokens_per_language=100)
    with pytest.raises(ValueError, match="holds a run of other neurons of 'yo'"):
        get_run(model, tokenizer, "yo", again, plan, **SETTINGS)
    Subnetwork.attach(model, again["yo"]).detach()  # nothing was left attached


def test_a_run_of_text_that_changed_since_is_refused(study):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    Subnetwork.attached_to(model).detach()
    path = Path("text/yo/train.txt")
    path.write_text(path.read_text() + "\n\nw3 w4 w5")
    with pytest.raises(
        ValueError, match="yo/lape-seed0 holds a run that was trained before the text of 'text' changed"
    ):
        get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    Subnetwork.attach(model, neurons["yo"]).detach()  # nothing was left attached


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
    moved, _ = load_model(str(tmp_path / "tiny"), load_in_8bit=False)
    assert moved.ssetools_source["revision"] == revision
    neurons.check_model(moved)
    Subnetwork.load(folder, moved).detach()  # the same folder by another name
    families.tiny_model("llama", seed=1).save_pretrained("tiny")
    other, _ = load_model("tiny", load_in_8bit=False)
    assert other.ssetools_source["revision"] != revision
    with pytest.raises(ValueError, match="trained for revision"):
        Subnetwork.load(folder, other)


def test_a_language_without_neurons_is_refused(study):
    model, tokenizer, _ = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", **PROFILE)
    neurons["is"][:] = [ids[:0] for ids in neurons["is"]]
    with pytest.raises(ValueError, match="No neuron is selected for 'is'"):
        neurons_for(neurons, "is", "lape", 0)
    with pytest.raises(KeyError, match="No neurons for language 'mt'"):
        neurons_for(neurons, "mt", "lape", 0)
    uniform = neurons_for(neurons, "yo", "random-uniform", 3)
    assert sum(map(len, uniform)) == neurons.count("yo")


def test_the_deactivation_matrix_is_what_switching_off_does(study, monkeypatch):
    model, tokenizer, _ = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", **PROFILE)
    monkeypatch.setattr("ssetools.measuring.load_texts", lambda source, lang, split: words(lang, 10))
    changes = deactivation_matrix(model, tokenizer, neurons, LANGS)
    assert list(changes.index) == [*LANGS, "random"]
    assert list(changes.columns) == LANGS
    before = perplexity(model, tokenizer, words("is", 10), max_tokens=400)
    with deactivated(model, neurons["yo"]):
        after = perplexity(model, tokenizer, words("is", 10), max_tokens=400)
    assert changes.loc["yo", "is"] == pytest.approx(math.log(after / before))
    assert changes.loc["yo", "is"] != 0


def test_plans_leave_out_a_kind_of_text(study, monkeypatch):
    def unreachable(source, lang, split):
        from ssetools.corpora import TextUnavailable

        raise TextUnavailable("no hub")

    monkeypatch.setattr("ssetools.text_plan.embedded.has_apt", lambda: True)
    monkeypatch.setattr("ssetools.text_plan.load_texts", lambda *a: ["text"])
    plan = plan_texts()
    assert (plan.train, plan.other_kind) == ("udhr+mediawiki", "sentences")
    own = plan_texts("some/folder")
    assert (own.train, own.same_kind, own.other_kind) == ("some/folder", ("folder",), "sentences")
    same = plan_texts("sib200", "sib200:folder")
    assert (same.same_kind, same.other_kind) == (("sentences",), "articles"), "what trains is not of another kind"
    monkeypatch.setattr("ssetools.text_plan.load_texts", unreachable)
    plan = plan_texts()
    assert (plan.train, plan.same_kind, plan.other_kind) == ("mediawiki", ("messages",), "articles")
    assert plan_texts("some/folder").other_kind == "articles"
    assert plan_texts("udhr").other_kind == "messages"
    monkeypatch.setattr("ssetools.text_plan.embedded.has_apt", lambda: False)
    plan = plan_texts()
    assert (plan.train, plan.other_kind) == ("udhr", None)
    assert "no text of another kind" in plan.reason


def test_command_line_errors_are_one_sentence(study, capsys):
    for arguments, message in [
        (["finetune", "xx"], "Unknown language 'xx'"),
        (["report", "yo"], "run `ssetools evaluate yo` first"),
        (["export", "yo", "out", "--seed", "3"], "run `ssetools finetune yo --seed 3` first"),
        (["languages", "yor"], "Did you mean 'yo' (Yoruba)"),
    ]:
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("ssetools: ")
        assert message in error
        assert error.count("\n") == 1


def test_what_stops_a_command_is_no_traceback(study, capsys, monkeypatch):
    Path("runs/tiny/yo/lape-seed0").mkdir(parents=True)
    Path("runs/tiny/yo/lape-seed0/metrics.json").write_text("")
    assert cli.main(["report", "yo", "--model", "tiny"]) == 2
    assert "metrics.json is not JSON" in capsys.readouterr().err
    weights = Path("tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["profile", "--model", "tiny", "--16-bit"]) == 2
    assert "'tiny' cannot be loaded" in capsys.readouterr().err
    for wrong in ("-5", "0", "many"):
        with pytest.raises(SystemExit):
            cli.main(["profile", "--tokens", wrong])
        assert f"'{wrong}' is not a number of one or more" in capsys.readouterr().err
    monkeypatch.setattr("ssetools.export.hub_reachable", lambda: False)
    with pytest.raises(ConnectionError, match="cannot be reached, to upload out to user/name"):
        push_to_hub("out", "user/name")

    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_languages", stopped)
    assert cli.main(["languages"]) == 130
    assert capsys.readouterr().err == "ssetools: stopped. The same command goes on from what is done.\n"


def test_a_reader_who_has_seen_enough_ends_the_command_in_silence():
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-m", "ssetools", "languages"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_exports_carry_a_card_and_the_merged_model_is_scored_again(study, capsys, tmp_path, monkeypatch):
    model, tokenizer, plan = study
    _, folder = trained(study)
    metrics = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    assert cli.main(["export", "yo", "peft", "--model", "tiny", "--uniform-rank"]) == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "\nlanguage: yo\n" in card.split("---")[1]
    assert f"{metrics['summary']['stories']['target']['percent']:+.1f}%" in card
    assert cli.main(["merge", "yo", "merged", "--model", "tiny"]) == 0
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    merged, _ = load_model("merged", load_in_8bit=False, dtype="bfloat16")
    tuned = perplexity(merged, tokenizer, load_texts("text", "yo", "test"), max_tokens=2048)
    assert f" to {tuned:.2f}" in (tmp_path / "merged" / "README.md").read_text()
    assert cli.main(["export", "yo", "gguf", "--model", "tiny", "--format", "gguf-lora"]) == 0
    assert {p.name for p in (tmp_path / "gguf").iterdir()} == {"adapter.gguf", "README.md"}
    assert "library_name: llama.cpp" in (tmp_path / "gguf" / "README.md").read_text()
    assert cli.main(["export", "yo", "out", "--model", "tiny", "--format", "gguf"]) == 2
    assert "Unknown format 'gguf': use one of peft, gguf-lora, merged." in capsys.readouterr().err

    calls = []
    monkeypatch.setattr("ssetools.export.hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **options: calls.append(repo))
    done = SimpleNamespace(commit_url="https://hub/commit")
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **o: calls.append(str(o["folder_path"])) or done)
    assert cli.main(["export", "yo", "peft2", "--model", "tiny", "--push", "me/yo"]) == 0
    assert calls == ["me/yo", "peft2"]


def test_what_cannot_be_exported_is_said_before_anything_is_loaded(study, capsys):
    model, tokenizer, plan = study
    neurons, folder = trained(study)
    Subnetwork.attached_to(model).detach()
    about = json.loads((folder / "adapter.json").read_text())
    assert "3 FFN neurons drawn at random, a control, were" in model_card(
        {**about, "method": "random", "neurons": 3}, None, "peft"
    )
    get_run(model, tokenizer, "yo", None, plan, "ia3", **SETTINGS)
    assert cli.main(["export", "yo", "out", "--model", "tiny", "--method", "ia3"]) == 2
    assert "PEFT loads the folder as it is" in capsys.readouterr().err
    (folder / "adapter.json").write_text(json.dumps({k: v for k, v in about.items() if k != "model_parameters"}))
    assert cli.main(["export", "yo", "out", "--model", "tiny"]) == 2
    assert "adapter.json lacks model_parameters, which the card tells" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_card_of_the_embedded_model_names_gemmas_terms(study):
    _, folder = trained(study)
    about = json.loads((folder / "adapter.json").read_text())
    about["base"]["model"] = "gemma-3-270m"
    card = model_card(about, None, "peft")
    assert "license: gemma" in card
    assert "Gemma Terms of Use" in card


def test_the_card_names_the_licence_of_the_base(study, tmp_path, monkeypatch):
    _, folder = trained(study)
    about = json.loads((folder / "adapter.json").read_text())
    assert "the base model, tiny, applies" in model_card(about, None, "peft")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# tiny")
    card = model_card(about, None, "merged")
    assert "\nlicense: cc-by-nc-4.0\n" in card
    assert "the base model, tiny, cc-by-nc-4.0, applies" in card
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: gemma\n---\n# tiny")
    assert "Gemma Terms of Use" in model_card(about, None, "peft")
    monkeypatch.setattr("ssetools.export.hub_reachable", lambda: False)
    about["base"]["model"] = "someone/not-here"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "\nlicense:" not in model_card(about, None, "peft")


def test_the_table_of_languages(capsys):
    assert cli.main(["languages"]) == 0
    assert "Yorùbá" in capsys.readouterr().out
