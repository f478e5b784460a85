"""The loop: loss, exact resume, best weights, settings, bad input."""

import copy
import subprocess
import sys

import families
import pandas
import pytest
import torch

from ssetools import Subnetwork, finetune, load_adapter
from ssetools.files import read_json
from ssetools.loss import chunked_loss, token_losses
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.text.windows import pack_tokens
from ssetools.training.finetune import choose_scale, peak_memory_gib, reset_peak_memory
from ssetools.training.loop import Run, TrainingSettings

SETTINGS = {"window": 16, "batch_size": 2, "learning_rate": 0.02, "validate_every": 3, "checkpoint_every": 2}


def words(count, start=3):
    return [" ".join(f"w{start + (5 * i + k) % 50}" for k in range(12)) for i in range(count)]


def run(model, tokenizer, tmp_path=None, **changes):
    options = {**SETTINGS, **changes}
    neurons = options.pop("neurons", families.some_neurons(model))
    texts, checks = options.pop("texts", words(40)), options.pop("validation_texts", words(6, 40))
    return finetune(model, tokenizer, texts, neurons=neurons, validation_texts=checks, run_dir=tmp_path, **options)


def test_training_lowers_the_loss_and_keeps_the_best_weights(word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    result = run(model, word_tokenizer, tmp_path, epochs=3)
    log = pandas.read_csv(tmp_path / "log.csv")
    assert log.loss.iloc[-3:].mean() < log.loss.iloc[:3].mean()
    assert len(log) == len(result.history)
    assert log.validation_loss.notna().sum() >= 3
    assert result.best_step == log.step[log.validation_loss.idxmin()]
    assert Subnetwork.attached_to(model) is result.adapter
    assert not (tmp_path / "checkpoint.pt").exists()


def test_training_of_a_few_seconds_shows_no_bar(word_tokenizer, capsys):
    run(families.tiny_model("llama"), word_tokenizer)
    assert "Training" not in capsys.readouterr().err


def test_the_best_weights_are_those_of_the_best_step(word_tokenizer):
    model = families.tiny_model("llama")
    others = ["w91 w92 w93 w94 w95 w90"] * 3  # words never trained on become less likely, sooner or later
    long = run(model, word_tokenizer, learning_rate=0.1, epochs=2, validate_every=1, validation_texts=others)
    best = min(long.history, key=lambda row: row["validation_loss"])
    assert long.best_step == best["step"] < len(long.history), "this rate must overshoot for the test to mean anything"
    windows = pack_tokens(word_tokenizer, others, 16)
    total = sum(token_losses(model, w[None]).sum().item() for w in windows)
    assert total / sum(len(w) - 1 for w in windows) == pytest.approx(best["validation_loss"], rel=1e-5)


def test_a_last_window_of_one_token_is_left_out_of_validation(word_tokenizer):
    without_bos = copy.deepcopy(word_tokenizer)
    without_bos.bos_token = None
    model = families.tiny_model("llama")
    texts = ["w40 w41 w42 w43 w44 w45 w46 w47 w48 w49 w50 w51 w52 w53 w54 w55"]  # and a newline: 17 tokens
    result = run(model, without_bos, validation_texts=texts)
    ids = torch.tensor([[*range(40, 56)]])
    best = min(row["validation_loss"] for row in result.history if "validation_loss" in row)
    assert token_losses(model, ids).mean().item() == pytest.approx(best, rel=1e-5)


def loss_alone(model, texts):
    """Mean loss of texts, each after BOS and without padding, from the model's own logits."""
    total = count = 0
    for text in texts:
        ids = torch.tensor([[2, *(int(word[1:]) for word in text.split()), 1]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(ids[0]) - 1
    return total / count


OTHERS = {"en": ["w80 w81 w82", "w83 w84 w85 w86 w87 w88"], "fr": ["w90 w91 w92 w93 w94"]}


def test_the_scale_is_the_best_on_validation_text_within_the_limits(word_tokenizer):
    model = families.tiny_model("llama")
    adapter = run(model, word_tokenizer, method="full", epochs=3).adapter
    checks = [*words(3, 40), "w5 w6 w7"]  # of different lengths
    expected, base = {}, None
    for scale in (0.0, 0.25, 0.5, 0.75, 1.0):
        adapter.scale = scale
        losses = {"target": loss_alone(model, checks), **{k: loss_alone(model, v) for k, v in OTHERS.items()}}
        base = base or losses
        expected[scale] = {name: loss / base[name] - 1 for name, loss in losses.items()}
    assert expected[1.0]["target"] < expected[0.5]["target"] < 0
    assert max(expected[1.0]["en"], expected[1.0]["fr"]) > 0.03, "this rate must harm the others for the test to bite"
    options = {"scales": (0.25, 0.5, 0.75, 1.0), "window": 16}
    for mean_limit, worst_limit in ((1.0, 1.0), (0.0, 0.0), (1e9, expected[0.5]["en"] + 1e-6), (1e9, 1e9)):
        curve = choose_scale(
            adapter, word_tokenizer, checks, OTHERS, **options, mean_limit=mean_limit, worst_limit=worst_limit
        )
        allowed = {}
        for scale, changes in expected.items():
            others = [changes["en"], changes["fr"]]
            if sum(others) / 2 <= mean_limit and max(others) <= worst_limit:
                allowed[scale] = changes["target"]
        assert adapter.scale == min(allowed, key=allowed.get)
        assert {row["scale"] for row in curve if row["within_limits"]} == set(allowed)
        for row in curve:
            found = {"target": row["validation_change"], **row["retention_changes"]}
            assert found == pytest.approx(expected[row["scale"]], abs=1e-5)


def test_finetune_chooses_the_scale_and_says_what_full_scale_would_do(word_tokenizer, tmp_path, capsys):
    model = families.tiny_model("llama")
    options = {"method": "full", "epochs": 3}
    with pytest.raises(ValueError, match="pass validation_texts= .* retention_texts={lang: texts} .* or give a number"):
        run(model, word_tokenizer, scale="auto", **options)
    with pytest.raises(ValueError, match="scale is a number from 0"):
        run(model, word_tokenizer, scale="half", **options)
    result = run(model, word_tokenizer, tmp_path, scale="auto", retention_texts=OTHERS, **options)
    said = capsys.readouterr().out.splitlines()[-1]
    chosen, full = (next(row for row in result.curve if row["scale"] == s) for s in (result.adapter.scale, 1.0))
    assert 0 < chosen["scale"] < 1
    assert chosen["mean_change"] <= 0.01
    assert f"Scale {chosen['scale']:g}: validation loss {chosen['validation_loss']:.3f}" in said
    assert f"Scale 1: validation loss {full['validation_loss']:.3f} ({full['validation_change']:+.1%})" in said
    assert read_json(tmp_path / "scales.json") == result.curve
    assert read_json(tmp_path / "adapter.json")["scale"] == chosen["scale"]
    tuned = model(families.tokens()).logits
    result.adapter.detach()
    load_adapter(tmp_path, model)
    assert torch.equal(model(families.tokens()).logits, tuned)


def test_a_number_is_taken_as_the_scale(word_tokenizer):
    model = families.tiny_model("llama")
    result = run(model, word_tokenizer, scale=0.4)
    assert result.adapter.scale == 0.4
    assert result.curve == []


class Killed(BaseException):
    """Stands for kill -9: no handler of the loop may run in between."""


@pytest.mark.parametrize("killed_at", [1, 2, 5, 8])
@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_a_killed_run_ends_in_the_same_weights(word_tokenizer, tmp_path, monkeypatch, capsys, killed_at, load_in_8bit):
    model = families.tiny_model("llama", load_in_8bit)
    whole = run(model, word_tokenizer, tmp_path / "whole")
    expected = copy.deepcopy(whole.adapter.state_dict())
    log = pandas.read_csv(tmp_path / "whole" / "log.csv")
    whole.adapter.detach()
    step = Run._one_step

    def dying(self):
        if self.step == killed_at:
            raise Killed
        return step(self)

    monkeypatch.setattr(Run, "_one_step", dying)
    with pytest.raises(Killed):
        run(model, word_tokenizer, tmp_path / "cut")
    monkeypatch.setattr(Run, "_one_step", step)
    resumed = run(model, word_tokenizer, tmp_path / "cut")
    assert ("Resuming the run" in capsys.readouterr().out) == (killed_at >= 2)
    for name, value in resumed.adapter.state_dict().items():
        assert torch.equal(value, expected[name]), name
    columns = ["step", "tokens", "loss", "validation_loss", "learning_rate", "grad_norm"]
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "cut" / "log.csv")[columns], log[columns])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.01}, "learning_rate: 0.02, wanted 0.01"),
        ({"validation_texts": []}, "other settings: validation: .*, wanted None"),
    ],
)
def test_a_stopped_run_with_other_settings_is_not_continued(word_tokenizer, tmp_path, monkeypatch, change, message):
    model = families.tiny_model("llama")
    step = Run._one_step
    monkeypatch.setattr(Run, "_one_step", lambda self: (_ for _ in ()).throw(Killed) if self.step == 4 else step(self))
    with pytest.raises(Killed):
        run(model, word_tokenizer, tmp_path)
    with pytest.raises(ValueError, match=message):
        run(model, word_tokenizer, tmp_path, **change)


def test_a_model_in_training_mode_trains_as_it_is_scored(word_tokenizer):
    model = families.tiny_model("gpt2")
    expected = run(model, word_tokenizer)
    weights = copy.deepcopy(expected.adapter.state_dict())
    expected.adapter.detach()
    model = families.tiny_model("gpt2").train()  # with dropout on
    again = run(model, word_tokenizer)
    assert all(torch.equal(value, weights[name]) for name, value in again.adapter.state_dict().items())
    assert model.training


def test_accumulation_equals_a_larger_batch(word_tokenizer):
    model = families.tiny_model("llama")
    one = run(model, word_tokenizer, batch_size=4)
    expected = copy.deepcopy(one.adapter.state_dict())
    one.adapter.detach()
    two = run(model, word_tokenizer, batch_size=2, gradient_accumulation=2)
    for name, value in two.adapter.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_non_finite_loss_stops_with_advice(word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    chunked_loss(model, families.tokens())  # the head's check comes before the damage
    model.model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        run(model, word_tokenizer, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "adapter.safetensors").exists()
    Subnetwork.attach(model, families.some_neurons(model)).detach()  # nothing was left attached


def test_max_tokens_and_epochs_bound_the_steps(word_tokenizer):
    model = families.tiny_model("llama")
    result = run(model, word_tokenizer, max_tokens=5 * 2 * 16, validation_texts=[])
    assert (len(result.history), result.tokens, result.best_step) == (5, 160, 5)


def test_a_text_shorter_than_a_step_says_that_it_is_repeated(word_tokenizer, capsys):
    model = families.tiny_model("llama")
    short = {"texts": words(2), "validation_texts": [], "batch_size": 4, "max_tokens": 10**4}
    windows = len(pack_tokens(word_tokenizer, words(2), 16)) - 1
    assert windows < 4
    result = run(model, word_tokenizer, **short)
    said = f"has {16 * windows} tokens (1 pass), and 10,000 were asked for: one step takes 64, so it is gone over again"
    assert said in capsys.readouterr().out
    assert result.tokens == 64


@pytest.mark.parametrize("name", ["max_tokens", "epochs", "batch_size", "validate_every", "checkpoint_every", "window"])
def test_settings_that_cannot_be_are_named(name):
    least = 2 if name == "window" else 1
    with pytest.raises(ValueError, match=f"{name} is a whole number from {least} on; got {least - 1}"):
        TrainingSettings(**{name: least - 1})


def test_bad_input(word_tokenizer):
    model = families.tiny_model("llama")
    none = [torch.empty(0, dtype=torch.long)] * 2
    for options, message in [
        ({"method": "laep"}, "Unknown method 'laep': use one of subnetwork, specific, lape, random"),
        ({"neurons": None}, "needs neurons="),
        ({"neurons": none}, "no neuron is selected in any layer"),
        ({"neurons": none[:1]}, "for 1 layers, but this model has 2"),
        ({"neurons": [torch.tensor([48]), none[0]]}, r"must be in 0\.\.47"),
        ({"texts": ["w5 w6"]}, "has 4 tokens, less than one window of 16"),
        ({"texts": [" "]}, "every document is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(model, word_tokenizer, **options)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with pytest.raises(ValueError, match="already has an adapter attached"):
        run(model, word_tokenizer)
    subnet.detach()
    with pytest.raises(ValueError, match="No adapter is attached"):
        Subnetwork.attached_to(model)


def test_merging_into_int8_is_refused():
    model = families.tiny_model("llama", load_in_8bit=True)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with pytest.raises(ValueError, match="Merged into int8 weights, .* load_in_8bit=False"):
        subnet.merge()
    assert subnet.attached


def test_small_gradients_do_not_vanish_in_float16(word_tokenizer):
    moved = {}
    for dtype in (torch.float16, torch.float32):
        model = families.tiny_model("llama", dtype=dtype)
        model.lm_head.weight *= 1e-5  # whose gradients are smaller than the smallest float16
        adapter = run(model, word_tokenizer, weight_decay=0.0, validation_texts=[], max_tokens=320).adapter
        moved[dtype] = torch.cat([p.detach().flatten() for p in adapter.parameters()])
    assert (moved[torch.float16] != 0).float().mean() > 0.9
    agree = torch.nn.functional.cosine_similarity(moved[torch.float16], moved[torch.float32], dim=0)
    assert agree > 0.8


def test_what_was_taken_off_cannot_be_used_again():
    model = families.tiny_model("llama")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with torch.no_grad():
        for delta in subnet.parameters():
            delta += 0.1
    tuned = model(families.tokens()).logits
    with subnet.switched_off():
        with subnet.switched_off():
            base = model(families.tokens()).logits
        assert torch.equal(model(families.tokens()).logits, base), "the outer block still holds"
    assert torch.equal(model(families.tokens()).logits, tuned)
    subnet.merge()
    once = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(ValueError, match="was taken off its model"):
        subnet.merge()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, once)
    with pytest.raises(ValueError, match="was taken off its model"), subnet.switched_off():
        pass


def test_switched_off_is_the_base_exactly(word_tokenizer):
    model = families.tiny_model("llama")
    base = token_losses(model, families.tokens())
    subnet = run(model, word_tokenizer).adapter
    tuned = token_losses(model, families.tokens())
    with subnet.switched_off():
        assert torch.equal(token_losses(model, families.tokens()), base)
    assert torch.equal(token_losses(model, families.tokens()), tuned)
    assert not torch.equal(tuned, base)


def test_an_adapter_for_another_model_is_refused(word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    model.ssetools_source = {"model": "one", "revision": None, "load_in_8bit": False}
    run(model, word_tokenizer, tmp_path).adapter.detach()
    model.ssetools_source = {"model": "two", "revision": None, "load_in_8bit": False}
    with pytest.raises(ValueError, match="was trained for model 'one', not 'two'"):
        Subnetwork.load(tmp_path, model)
    assert not any(block.down.module._forward_hooks for block in find_ffn_blocks(model))


def test_peak_memory_is_that_of_this_process_since_the_reset():
    large = torch.ones(2**28)  # a GiB
    before = peak_memory_gib()
    command = "from ssetools.training.finetune import choose_scale, peak_memory_gib; print(peak_memory_gib())"
    child = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert float(child.stdout) < before, "a child does not begin with its parent's peak"
    del large
    reset_peak_memory()
    assert peak_memory_gib() < before - 0.8


def test_a_tokenizer_that_adds_bos_and_eos_itself_opens_each_window_once(word_tokenizer):
    from tokenizers.processors import TemplateProcessing

    adding = copy.deepcopy(word_tokenizer)
    tokens = [("<bos>", 2), ("<pad>", 0)]
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <pad>", special_tokens=tokens)
    assert adding("w5")["input_ids"] == [2, 5, 0], "it opens and closes every text"
    model = families.tiny_model("llama")
    plain = run(model, word_tokenizer)
    expected = copy.deepcopy(plain.adapter.state_dict())
    plain.adapter.detach()
    again = run(model, adding)
    assert all(torch.equal(value, expected[name]) for name, value in again.adapter.state_dict().items())
