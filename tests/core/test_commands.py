"""The command line and exports on a tiny model: what they write, and that an error is one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_up_study import LANGS, PROFILE, SETTINGS, trained
from peft import PeftModel

from ssetools import NeuronSets, Subnetwork, cli, finetune, load_model, load_texts, perplexity
from ssetools.errors import InvalidInput, MissingLanguage, MissingPackage, TextUnavailable, TrainingDiverged
from ssetools.export import model_card, push_to_hub
from ssetools.steps import get_metrics, get_neurons, get_run
from ssetools.training.adapter import Adapter
from ssetools.training.finetune import SCALES, best_scale
from ssetools.training.methods import method_with


def test_command_line_errors_are_one_sentence(study, capsys):
    for arguments, message in [
        (["finetune", "xx"], "Unknown language 'xx'"),
        (["report", "yo"], "run `ssetools evaluate yo` first"),
        (["export", "yo", "out", "--seed", "3"], "run `ssetools finetune yo --seed 3` first"),
        (["languages", "yorba"], "Did you mean 'yo' (Yoruba)"),
    ]:
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("ssetools: ")
        assert message in error
        assert error.count("\n") == 1


def test_what_stops_a_command_is_no_traceback(study, capsys, monkeypatch):
    Path("runs/tiny/yo/specific-seed0").mkdir(parents=True)
    Path("runs/tiny/yo/specific-seed0/metrics.json").write_text("")
    assert cli.main(["report", "yo", "--model", "tiny"]) == 2
    assert "metrics.json is not JSON" in capsys.readouterr().err
    weights = Path("tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["profile", "--model", "tiny", "--16-bit"]) == 2
    assert "'tiny' cannot be loaded" in capsys.readouterr().err
    for wrong in ("-5", "0", "many"):
        with pytest.raises(SystemExit):
            cli.main(["profile", "--tokens", wrong])
        assert f"'{wrong}' is not a whole number of 1 or more" in capsys.readouterr().err
    monkeypatch.setattr("ssetools.export.hub_reachable", lambda: False)
    with pytest.raises(ConnectionError, match="cannot be reached, to upload out to user/name"):
        push_to_hub("out", "user/name")

    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_languages", stopped)
    assert cli.main(["languages"]) == 130
    message = "ssetools: interrupted. The same command continues from the files that are finished.\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [KeyError("weight"), RuntimeError("shape mismatch"), ValueError("too many values")])
def test_an_error_that_no_user_can_fix_keeps_its_traceback(monkeypatch, capsys, error):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_languages", fail)
    with pytest.raises(type(error)) as caught:
        cli.main(["languages"])
    assert caught.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("The rate is 2."),
        TextUnavailable("The rate is 2."),
        MissingLanguage("The rate is 2."),
        MissingPackage("The rate is 2."),
        TrainingDiverged("The rate is 2."),
        FileNotFoundError("The rate is 2."),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_sentence(monkeypatch, capsys, error):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_languages", fail)
    assert cli.main(["languages"]) == 2
    assert capsys.readouterr().err == "ssetools: The rate is 2.\n"


def test_a_reader_who_has_seen_enough_ends_the_command_in_silence():
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-m", "ssetools", "languages", "yo"], stdout=theirs, stderr=subprocess.PIPE)
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
    assert "3 FFN neurons drawn at random, a control for Yoruba, were" in model_card(
        {**about, "method": "random", "neurons": 3}, None, "peft"
    )
    get_run(model, tokenizer, "yo", None, plan, "ia3", **SETTINGS)
    Adapter.attached_to(model).detach()
    get_run(model, tokenizer, "yo", None, plan, "ffn", **SETTINGS)
    for method, form in (("ia3", "gguf-lora"), ("ffn", "peft"), ("ffn", "gguf-lora")):
        arguments = ["export", "yo", "out", "--model", "tiny", "--method", method, "--format", form]
        assert cli.main(arguments) == 2
        assert f"has no {form} form: use " in capsys.readouterr().err
    with pytest.raises(ValueError, match="WholeWeights cannot be written as LoRA"):
        Adapter.attached_to(model).to_gguf_lora("out")
    (folder / "adapter.json").write_text(json.dumps({k: v for k, v in about.items() if k != "model_parameters"}))
    assert cli.main(["export", "yo", "out", "--model", "tiny"]) == 2
    assert "adapter.json lacks model_parameters, which the model card needs" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("method", "forms"),
    [("lape", ["peft", "gguf-lora", "merged"]), ("lora", ["peft", "gguf-lora", "merged"]), ("ia3", ["peft", "merged"])],
)
def test_a_finished_run_is_evaluated_and_exported_at_another_scale_without_training(
    study, capsys, monkeypatch, method, forms
):
    model, tokenizer, plan = study
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", selection="lape", **PROFILE)
    folder = get_run(model, tokenizer, "yo", neurons, plan, method, **SETTINGS)
    whole = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    Adapter.attached_to(model).detach()
    trained = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("ssetools.steps.finetune", None)  # nothing may be trained from here on
    get_run(model, tokenizer, "yo", neurons, plan, method, **{**SETTINGS, "scale": 0.5})
    half = get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)
    after = [metrics["after"]["stories"]["yo"]["perplexity"] for metrics in (whole, half)]
    before = whole["before"]["stories"]["yo"]["perplexity"]
    assert half["adapter"]["scale"] == 0.5
    assert min(before, after[0]) < after[1] < max(before, after[0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **trained,
        "metrics-scale0.5.json": (folder / "metrics-scale0.5.json").read_bytes(),
    }
    Adapter.attached_to(model).detach()
    get_run(model, tokenizer, "yo", neurons, plan, method, **SETTINGS)
    assert Adapter.attached_to(model).scale == 1
    assert get_metrics(model, tokenizer, "yo", folder, plan, languages=LANGS)["after"] == whole["after"]
    assert (folder / "metrics.json").read_bytes() == trained["metrics.json"]
    arguments = ["yo", "--model", "tiny", "--method", method, "--scale", "0.5"]
    assert cli.main(["report", *arguments]) == 0
    assert "0.5   of the trained change\n" in capsys.readouterr().out
    for form in forms:
        assert cli.main(["export", *arguments, f"out-{form}", "--format", form]) == 0
        card = Path(f"out-{form}/README.md").read_text()
        assert "Of the trained change, 0.5 times as much is used." in card
        assert f"{half['summary']['stories']['target']['percent']:+.1f}%" in card.replace("−", "-")
    Adapter.attached_to(model).detach()
    tuned = PeftModel.from_pretrained(model, "out-peft")
    score = perplexity(tuned.get_base_model(), tokenizer, load_texts("text", "yo", "test"), max_tokens=2048)
    assert score == pytest.approx(after[1], rel=1e-4)
    assert json.loads(Path("out-merged/config.json").read_text())["use_cache"] is True


def test_the_scale_of_a_run_is_chosen_once(study, capsys, monkeypatch):
    model, tokenizer, plan = study
    others = {lang: load_texts("text", lang, "validation") for lang in ("en", "is")}
    monkeypatch.setattr("ssetools.steps._retention_texts", lambda plan, lang: others)
    neurons = get_neurons(model, tokenizer, top_rate=0.2, source="text", selection="lape", **PROFILE)
    one = get_run(model, tokenizer, "yo", neurons, plan, **{**SETTINGS, "scale": "auto"})
    chosen = json.loads((one / "scales.json").read_text())
    adapter = Adapter.attached_to(model)
    assert adapter.scale == best_scale(chosen) == json.loads((one / "adapter.json").read_text())["scale"]
    assert get_metrics(model, tokenizer, "yo", one, plan, languages=LANGS)["scales"] == chosen
    adapter.detach()
    two = get_run(model, tokenizer, "yo", neurons, plan, seed=1, **SETTINGS)
    Adapter.attached_to(model).detach()
    assert not (two / "scales.json").exists()
    assert cli.main(["report", "yo", "--model", "tiny", "--seed", "1", "--scale", "auto"]) == 2
    assert "scales.json: `ssetools evaluate` with `--scale auto` makes it" in capsys.readouterr().err
    monkeypatch.setattr("ssetools.steps.finetune", None)
    get_run(model, tokenizer, "yo", neurons, plan, seed=1, **{**SETTINGS, "scale": "auto"})
    curve = json.loads((two / "scales.json").read_text())
    assert Adapter.attached_to(model).scale == best_scale(curve)
    assert [row["scale"] for row in curve] == [0.0, *SCALES]
    Adapter.attached_to(model).detach()
    monkeypatch.setattr("ssetools.steps.choose_scale", None)
    get_run(model, tokenizer, "yo", neurons, plan, seed=1, **{**SETTINGS, "scale": "auto"})
    assert Adapter.attached_to(model).scale == best_scale(curve)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "yo", "--scale", "half"])
    assert "'half' is neither a number nor auto" in capsys.readouterr().err


def test_random_neurons_are_a_selection(study, capsys):
    model, tokenizer, plan = study
    neurons = get_neurons(model, tokenizer, source="text", selection="random", **PROFILE)
    by_method = get_run(model, tokenizer, "yo", neurons, plan, "random", **SETTINGS)
    drawn = Adapter.attached_to(model).detach() and Subnetwork.load(by_method, model).neurons
    assert by_method.name == "random-seed0"
    assert all(map(torch.equal, drawn, neurons.random_like("yo", seed=0)))
    about = json.loads((by_method / "adapter.json").read_text())
    assert (about["method"], about["selection"]) == ("random", "specific")
    assert method_with("subnetwork", "random") == method_with("random", "specific") == ("random", "specific")
    assert method_with("random", "lape") == ("random", "lape")
    assert method_with("subnetwork", "lape") == method_with("lape", "specific") == ("lape", "lape")
    assert method_with("specific", "lape") == ("specific", "specific")
    assert method_with("lora-equal", "lape") == ("lora-equal", "lape")
    Adapter.attached_to(model).detach()
    for method in ("random", "random-uniform"):
        with pytest.raises(ValueError, match=r'draws neurons.*neurons.random_like.*method="subnetwork"'):
            finetune(model, tokenizer, ["w5 w6"], method, neurons["yo"])
    with pytest.raises(ValueError, match="selected as 'specific': set selection='lape'"):
        get_run(model, tokenizer, "yo", neurons, plan, "lape", **SETTINGS)
    assert cli.main(["finetune", "yo", "--model", "tiny", "--selection", "rare"]) == 2
    assert "Unknown selection 'rare': use one of specific, lape, random." in capsys.readouterr().err


def test_specific_neurons_are_a_selection(study, capsys, monkeypatch):
    model, tokenizer, plan = study
    monkeypatch.setattr("ssetools.steps.PROFILED_LANGUAGES", LANGS)
    arguments = [
        "--model",
        "tiny",
        "--profile-source",
        "text",
        "--tokens",
        "600",
        "--16-bit",
    ]
    assert cli.main(["select", *arguments]) == 0
    assert "yo         2 neurons" in capsys.readouterr().out, "1% of this model is a neuron in each of two layers"
    neurons = get_neurons(model, tokenizer, source="text", selection="specific", **PROFILE)
    saved = Path("runs/tiny/neurons-specific.safetensors")
    assert NeuronSets.load(saved).metadata == neurons.metadata
    before = saved.stat().st_mtime_ns
    get_neurons(model, tokenizer, source="text", selection="specific", **PROFILE)
    assert saved.stat().st_mtime_ns == before, "found, not made again"
    folder = get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    about = json.loads((folder / "adapter.json").read_text())
    assert (folder.name, about["method"], about["selection"]) == ("specific-seed0", "specific", "specific")
    assert all(map(torch.equal, Adapter.attached_to(model).neurons, neurons["yo"]))
    Adapter.attached_to(model).detach()
    folder = get_run(model, tokenizer, "yo", neurons, plan, "random", **SETTINGS)
    assert list(map(len, Adapter.attached_to(model).neurons)) == list(map(len, neurons["yo"]))
    Adapter.attached_to(model).detach()
    lape = get_neurons(model, tokenizer, top_rate=0.2, source="text", selection="lape", **PROFILE)
    with pytest.raises(ValueError, match="selection='specific'"):
        get_run(model, tokenizer, "yo", lape, plan, "specific", **SETTINGS)
    with pytest.raises(ValueError, match="neuron_ids"):
        get_run(model, tokenizer, "yo", lape, plan, "random", **SETTINGS)
    assert "most specific to Yoruba" in model_card({**about, "model_parameters": 10}, None, "peft")


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
