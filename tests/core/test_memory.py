"""Recomputed activations give the same gradients and keep less; 8-bit AdamW trains, resumes and is smaller."""

import copy
import gc
from pathlib import Path

import families
import pytest
import torch

from ssetools import finetune
from ssetools.loss import chunked_loss
from ssetools.models import decoder_layers, evaluation_mode, load_model
from ssetools.training.loop import Run, checkpointed_activations, make_optimizer
from ssetools.training.methods import attach_method

SETTINGS = {"window": 16, "batch_size": 2, "learning_rate": 0.02, "checkpoint_every": 2}
TEXTS = [" ".join(f"w{3 + (5 * i + k) % 50}" for k in range(12)) for i in range(40)]


def gradients(model, method, active, neurons):
    adapter = attach_method(model, method, neurons)
    before = [layer.forward for layer in decoder_layers(model)]
    with evaluation_mode(model), checkpointed_activations(model, active):
        loss = chunked_loss(model, families.tokens())
        loss.backward()
    adapter.collect_gradients()
    found = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    assert [layer.forward for layer in decoder_layers(model)] == before
    adapter.detach()
    return loss.item(), found


@pytest.mark.parametrize(
    ("family", "load_in_8bit"), [*((f, False) for f in families.CONFIGS), ("llama", True), ("gemma3", True)]
)
def test_recomputed_activations_give_the_same_gradients(family, load_in_8bit):
    model = families.tiny_model(family, load_in_8bit)
    neurons = families.some_neurons(model)
    neurons[0] = neurons[0][:0]  # nothing is trained in the first layer
    torch.manual_seed(0)
    loss, plain = gradients(model, "lape", False, neurons)
    same, again = gradients(model, "lape", True, neurons)
    assert loss == same
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["lora", "ia3", "ffn", "full"])
def test_recomputed_activations_work_with_every_method(method):
    model = families.tiny_model("llama")
    torch.manual_seed(0)
    _, plain = gradients(model, method, False, None)
    torch.manual_seed(0)
    _, again = gradients(model, method, True, None)
    assert plain.keys() == again.keys()
    assert all(torch.allclose(again[name], value, rtol=1e-4, atol=1e-7) for name, value in plain.items())


def test_a_layer_that_was_wrapped_before_is_left_as_it_was():
    model = families.tiny_model("llama")
    layer = decoder_layers(model)[1]
    original = layer.forward
    layer.forward = lambda *a, **o: original(*a, **o)
    mine = layer.forward
    with checkpointed_activations(model):
        assert layer.forward is not mine
    assert layer.forward is mine
    assert "forward" not in decoder_layers(model)[0].__dict__


def trained(model, tokenizer, folder=None, **options):
    neurons = [torch.arange(48)] * 2  # slices of 1,536 numbers; LoRA's and these together make both kinds of state
    result = finetune(model, tokenizer, TEXTS, neurons=neurons, run_dir=folder, **{**SETTINGS, **options})
    state = copy.deepcopy(result.adapter.state_dict())
    result.adapter.detach()
    return result, state


def test_training_with_recomputed_activations_ends_in_the_same_weights(word_tokenizer):
    model = families.tiny_model("llama", load_in_8bit=True)
    one, weights = trained(model, word_tokenizer)
    two, same = trained(model, word_tokenizer, checkpoint_activations=True)
    assert two.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture
def large_states(monkeypatch):
    """Lets tensors as small as these have an 8-bit state."""
    import bitsandbytes

    plain = bitsandbytes.optim.AdamW8bit
    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", lambda *a, **o: plain(*a, **o, min_8bit_size=256))


@pytest.mark.usefixtures("large_states")
def test_8bit_adamw_trains_with_a_quarter_of_the_state(word_tokenizer):
    model = families.tiny_model("llama")
    one, _ = trained(model, word_tokenizer)
    two, _ = trained(model, word_tokenizer, optimizer="adamw8bit")
    assert two.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=0.02)
    assert two.history[-1]["loss"] < two.history[0]["loss"]
    assert 8 * one.adapter.num_parameters <= one.optimizer_bytes < 8.1 * one.adapter.num_parameters
    assert two.optimizer_bytes < 0.3 * one.optimizer_bytes


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.usefixtures("large_states")
def test_a_killed_run_with_8bit_adamw_ends_in_the_same_weights(word_tokenizer, tmp_path, monkeypatch, capsys):
    model = families.tiny_model("llama")
    _, expected = trained(model, word_tokenizer, tmp_path / "whole", optimizer="adamw8bit")
    step = Run._one_step
    monkeypatch.setattr(Run, "_one_step", lambda self: (_ for _ in ()).throw(Killed) if self.step == 5 else step(self))
    with pytest.raises(Killed):
        trained(model, word_tokenizer, tmp_path / "cut", optimizer="adamw8bit")
    monkeypatch.setattr(Run, "_one_step", step)
    _, resumed = trained(model, word_tokenizer, tmp_path / "cut", optimizer="adamw8bit")
    assert "Resuming the run" in capsys.readouterr().out
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what the process has mapped")
def test_an_8bit_model_does_not_keep_its_16bit_file_in_memory(tmp_path, word_tokenizer):
    families.tiny_model("gemma3", dtype=torch.bfloat16).save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    held = {}
    for load_in_8bit in (False, True):
        model, _ = load_model(str(tmp_path), load_in_8bit=load_in_8bit, dtype="bfloat16", device_map={"": "cpu"})
        held[load_in_8bit] = str(tmp_path) in Path("/proc/self/maps").read_text()
        del model
        gc.collect()
    assert held == {False: True, True: False}


def test_unknown_optimizers_and_devices_are_refused(word_tokenizer):
    with pytest.raises(ValueError, match="Unknown optimizer 'adam': use one of adamw, adamw8bit"):
        trained(families.tiny_model("llama"), word_tokenizer, optimizer="adam")
    with pytest.raises(ValueError, match="no 8-bit AdamW on meta: use optimizer='adamw'"):
        make_optimizer("adamw8bit", [torch.nn.Parameter(torch.empty(1, device="meta"))], 1e-3, 0.0)
