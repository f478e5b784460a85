"""The command line and exports on a tiny model: what they write, and that an error is one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up_study import LANGS, SETTINGS, trained

from ssetools import Subnetwork, cli, load_model, load_texts, perplexity
from ssetools.errors import InvalidInput, MissingLanguage, MissingPackage, TextUnavailable, TrainingDiverged
from ssetools.export import model_card, push_to_hub
from ssetools.steps import get_metrics, get_run


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
