"""Every method goes through the same calls: attach, train, save, load, switch off, resume, come off."""

from __future__ import annotations

import json

import families
import pytest
import torch
from peft import PeftModel
from test_training import SETTINGS, words
from transformers import AutoModelForCausalLM

from ssetools import METHODS, Subnetwork, finetune, load_adapter
from ssetools.files import load_tensors, save_tensors
from ssetools.steps import neurons_for
from ssetools.training.adapter import Adapter
from ssetools.training.methods import attach_method

IDS = families.tokens()
BASES = [
    (name, eight)
    for name, method in METHODS.items()
    for eight in ([False, True] if method.on_8bit else [False])
    if method.selection in (None, "lape") and name != "subnetwork"
]


def gemma2(load_in_8bit=False):
    model = families.tiny_model("gemma2", load_in_8bit)
    model.ssetools_source = {"model": "gemma2", "revision": "1", "load_in_8bit": load_in_8bit}
    return model


def trained(name, load_in_8bit, tokenizer, folder, **changes):
    model = gemma2(load_in_8bit)
    options = {**SETTINGS, "learning_rate": 0.05, **changes}
    return model, finetune(
        model,
        tokenizer,
        words(40),
        method=name,
        neurons=families.some_neurons(model),
        validation_texts=words(6, 40),
        run_dir=folder,
        **options,
    )


@pytest.mark.parametrize(("name", "load_in_8bit"), BASES)
def test_a_method_trains_saves_loads_and_comes_off(name, load_in_8bit, word_tokenizer, tmp_path):
    base = gemma2(load_in_8bit)
    before = base(input_ids=IDS).logits
    model, result = trained(name, load_in_8bit, word_tokenizer, tmp_path)
    after = model(input_ids=IDS).logits
    assert not torch.equal(after, before), "training must change the model"
    assert result.history[-1]["validation_loss"] < result.history[0]["loss"]
    assert result.optimizer_bytes >= 8 * result.adapter.num_parameters
    assert json.loads((tmp_path / "adapter.json").read_text())["parameters"] == result.adapter.num_parameters
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "others may read all of it or none"
    with result.adapter.switched_off():
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert torch.equal(model(input_ids=IDS).logits, after)
    adapter = load_adapter(tmp_path, base)
    assert torch.equal(base(input_ids=IDS).logits, after)
    assert adapter.num_parameters == result.adapter.num_parameters
    adapter.detach()
    assert torch.equal(base(input_ids=IDS).logits, before)
    assert not any(p.requires_grad for p in base.parameters())
    Subnetwork.attach(base, families.some_neurons(base)).detach()
    with pytest.raises(ValueError, match="No adapter is attached"):
        Adapter.attached_to(base)


def same(left, right, exactly=True):
    if exactly:
        assert torch.equal(left, right)
    else:
        torch.testing.assert_close(left, right, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("name", "load_in_8bit"), [x for x in BASES if x[0] in ("lape", "lora", "ia3", "ffn", "full")])
def test_attached_saved_exported_and_merged_models_agree_at_every_scale(name, load_in_8bit, word_tokenizer, tmp_path):
    base = gemma2(load_in_8bit)
    logits = {0.0: base(input_ids=IDS).logits}
    model, result = trained(name, load_in_8bit, word_tokenizer, None)
    adapter = result.adapter
    logits[1.0] = model(input_ids=IDS).logits
    adapter.scale = 0.5
    logits[0.5] = model(input_ids=IDS).logits
    assert all((logits[0.5] - logits[end]).abs().max() > 1e-3 for end in (0.0, 1.0))
    for scale, expected in logits.items():
        folder = tmp_path / str(scale)
        adapter.scale = scale
        same(model(input_ids=IDS).logits, expected)
        with adapter.switched_off():
            same(model(input_ids=IDS).logits, logits[0.0])
        same(model(input_ids=IDS).logits, expected)
        adapter.save(folder / "own")
        same(model(input_ids=IDS).logits, expected)
        again = load_adapter(folder / "own", base)
        assert again.scale == scale
        same(base(input_ids=IDS).logits, expected)
        again.scale = 1
        same(base(input_ids=IDS).logits, logits[1.0])
        again.detach()
        if name not in ("ffn", "full"):
            adapter.to_peft(folder / "peft")
            same(model(input_ids=IDS).logits, expected)
            exported = PeftModel.from_pretrained(gemma2(load_in_8bit), folder / "peft")
            same(exported(input_ids=IDS).logits, expected, exactly=False)
        if load_in_8bit:
            with pytest.raises(ValueError, match="Merged into int8 weights, .* load_in_8bit=False"):
                adapter.merge()
            continue
        mergeable = gemma2()
        load_adapter(folder / "own", mergeable).merge()
        same(mergeable(input_ids=IDS).logits, expected, exactly=False)
        assert not any(p.requires_grad for p in mergeable.parameters())
        mergeable.save_pretrained(folder / "merged")
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
        same(merged(input_ids=IDS).logits, expected, exactly=False)


def test_half_the_scale_is_half_of_what_was_trained(word_tokenizer):
    for name in ("ffn", "full", "lora", "lape"):
        before = {n: p.clone() for n, p in gemma2().named_parameters()}
        model, result = trained(name, False, word_tokenizer, None)
        result.adapter.scale = 0.5
        result.adapter.merge()
        half = {n: p.clone() for n, p in model.named_parameters()}
        model, result = trained(name, False, word_tokenizer, None)
        result.adapter.merge()
        moved = 0.0
        for n, whole in model.named_parameters():
            torch.testing.assert_close(half[n], (before[n] + whole) / 2, rtol=1e-5, atol=1e-6)
            moved += (whole - before[n]).abs().max().item()
        assert moved > 0.01
    model, result = trained("ia3", False, word_tokenizer, None)
    factors = {n: p.detach().clone() for n, p in result.adapter.numbers.items()}
    result.adapter.scale = 0.5
    for n, p in result.adapter.numbers.items():
        torch.testing.assert_close(p.detach(), (1 + factors[n]) / 2)


def test_adapters_saved_without_a_scale_have_scale_one_and_wrong_scales_are_refused(word_tokenizer, tmp_path):
    model, result = trained("lape", False, word_tokenizer, tmp_path)
    expected = model(input_ids=IDS).logits
    about = json.loads((tmp_path / "adapter.json").read_text())
    assert about.pop("scale") == 1.0
    (tmp_path / "adapter.json").write_text(json.dumps(about))
    base = gemma2()
    assert load_adapter(tmp_path, base).scale == 1.0
    same(base(input_ids=IDS).logits, expected)
    for wrong in (-0.1, float("nan"), float("inf"), "auto", True, None):
        with pytest.raises(ValueError, match="scale is a number from 0"):
            result.adapter.scale = wrong
    assert result.adapter.scale == 1.0


@pytest.mark.parametrize("name", ["lape", "lora", "ia3", "full"])
def test_a_scale_set_while_switched_off_holds_afterwards(name, word_tokenizer):
    model, result = trained(name, False, word_tokenizer, None)
    result.adapter.scale = 0.5
    expected = model(input_ids=IDS).logits
    result.adapter.scale = 1
    with result.adapter.switched_off(), result.adapter.switched_off():
        base = model(input_ids=IDS).logits
        result.adapter.scale = 0.5
        same(model(input_ids=IDS).logits, base)
    same(model(input_ids=IDS).logits, expected)
    result.adapter.detach()
    same(model(input_ids=IDS).logits, base)


@pytest.mark.parametrize("name", ["full", "lora", "ia3"])
def test_a_killed_run_goes_on_to_the_same_weights(name, word_tokenizer, tmp_path, monkeypatch):
    whole = trained(name, False, word_tokenizer, tmp_path / "whole")[1].adapter.state_dict()
    step = torch.optim.AdamW.step
    count = iter(range(100))

    def killed(self, *args, **options):
        if next(count) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(name, False, word_tokenizer, tmp_path / "killed", checkpoint_every=2)
    again = trained(name, False, word_tokenizer, tmp_path / "killed", checkpoint_every=2)[1].adapter.state_dict()
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_16_bit_weights_are_trained_through_float32_masters(word_tokenizer):
    model = gemma2().to(torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = finetune(model, word_tokenizer, words(40), method="full", **{**SETTINGS, "learning_rate": 1e-5})
    moved = result.adapter.trained_weights()["model.norm.weight"] - before["model.norm.weight"].float()
    assert 0 < moved.abs().max() < 2e-3, "steps far below bfloat16's rounding must add up"
    result.adapter.detach()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("name", "load_in_8bit"), BASES)
def test_every_method_trains_a_bfloat16_model(name, load_in_8bit, word_tokenizer):
    model = families.tiny_model("gemma3", load_in_8bit, dtype=torch.bfloat16)
    before = model(input_ids=IDS).logits
    result = finetune(model, word_tokenizer, words(20), name, families.some_neurons(model), **SETTINGS)
    after = model(input_ids=IDS).logits
    assert after.dtype == torch.bfloat16
    assert not torch.equal(after, before)
    assert {parameter.dtype for parameter in result.adapter.parameters()} == {torch.float32}
    result.adapter.detach()
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_off_the_model_trained_weights_are_kept_and_peft_says_that_its_are_gone(word_tokenizer, tmp_path):
    _, result = trained("full", False, word_tokenizer, None)
    tuned = {name: weight.clone() for name, weight in result.adapter.trained_weights().items()}
    result.adapter.detach()
    result.adapter.save(tmp_path / "full")
    again = load_adapter(tmp_path / "full", gemma2())
    assert all(torch.equal(weight, tuned[name]) for name, weight in again.trained_weights().items())
    _, result = trained("lora", False, word_tokenizer, None)
    result.adapter.detach()
    with pytest.raises(ValueError, match="was taken off its model"):
        result.adapter.save(tmp_path / "lora")


def test_ffn_moves_the_projections_alone(word_tokenizer, tmp_path):
    base = dict(gemma2().named_parameters())
    model, _ = trained("ffn", False, word_tokenizer, tmp_path)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, base[name])}
    projections = ("gate_proj", "up_proj", "down_proj")
    assert moved == {name for name in base if any(part in name for part in projections)}


def test_lora_at_equal_size_has_as_many_parameters_as_the_neurons():
    model = gemma2()
    neurons = [torch.arange(20), torch.arange(30)]
    wanted = Subnetwork.attach(model, neurons)
    wanted.detach()
    equal = attach_method(model, "lora-equal", neurons)
    per_rank = 2 * 3 * (32 + 48)
    assert abs(equal.num_parameters - wanted.num_parameters) <= per_rank / 2


def test_a_base_or_method_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="load the model with load_in_8bit=False"):
        attach_method(families.tiny_model("llama", load_in_8bit=True), "full")
    model = families.tiny_model("nemotron")
    with pytest.raises(ValueError, match="IA3 in 'nemotron' models"):
        attach_method(model, "ia3")
    with pytest.raises(ValueError, match="Unknown method 'lorra': use one of subnetwork, specific, lape"):
        attach_method(model, "lorra")
    with pytest.raises(ValueError, match="needs neurons="):
        attach_method(model, "lape")
    assert neurons_for(None, "yo", "lora", 0) is None


@pytest.mark.parametrize("tied", [True, False])
def test_full_trains_embedding_and_head_and_a_tied_pair_stays_tied(tied, word_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = families.tiny_model("llama").config
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config)
    before = [x.weight.detach().clone() for x in (model.get_input_embeddings(), model.get_output_embeddings())]
    result = finetune(model, word_tokenizer, words(40), method="full", scale=0.5, **SETTINGS)
    expected = model(input_ids=IDS).logits
    result.adapter.merge().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    same(again(input_ids=IDS).logits, expected, exactly=False)
    after = [x.weight for x in (again.get_input_embeddings(), again.get_output_embeddings())]
    assert all((x - y).abs().max() > 1e-3 for x, y in zip(after, before, strict=True))
    assert torch.equal(*after) == tied


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_checkpoint_that_does_not_fit_the_modules_is_refused(name, word_tokenizer, tmp_path):
    _, _ = trained(name, False, word_tokenizer, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors, facts = load_tensors(path, "a PEFT adapter")
    renamed = {key.replace("layers.0", "layers.7"): value for key, value in tensors.items()}
    base = gemma2()
    for changed in (renamed, {key: value for key, value in tensors.items() if "layers.0" not in key}):
        save_tensors(path, changed, facts)
        with pytest.raises(ValueError, match="does not fit the modules of this model"):
            load_adapter(tmp_path, base)
        with pytest.raises(ValueError, match="No adapter is attached"):
            Adapter.attached_to(base)
