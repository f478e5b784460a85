"""Loading models as people have them: folders, precisions, quantised checkpoints, adapters, copies, devices."""

import json
import shutil
from types import SimpleNamespace

import families
import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ssetools import Subnetwork, finetune, load_model, perplexity, profile_languages, weight_change
from ssetools.models import (
    _device,
    choose_dtype,
    model_mismatch,
    model_precision,
    model_source,
    num_parameters,
    quantization_of,
    shard_model,
)
from ssetools.training.methods import WholeWeights, load_adapter

TEXTS = [" ".join(f"w{3 + (7 * i + k) % 90}" for k in range(9)) for i in range(30)]
SHORT = {"window": 9, "max_tokens": 90, "batch_size": 2}


@pytest.fixture
def folder(tmp_path, word_tokenizer):
    """A saved tiny model with its tokenizer."""
    families.tiny_model("llama").save_pretrained(tmp_path / "model")
    word_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def in_4bit(tmp_path_factory, word_tokenizer):
    """A tiny model in nf4, whose layers have whole blocks of 64 weights, and the folder of its 16-bit base."""
    base = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(**{**families.CONFIGS["llama"][1], "hidden_size": 64, "intermediate_size": 128})
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    word_tokenizer.save_pretrained(base)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, device_map="cpu")
    return model.eval(), base


def test_a_model_on_several_devices_is_refused(word_tokenizer):
    model = families.tiny_model("llama")
    neurons = families.some_neurons(model)
    model.model.layers[1].to("meta")
    for use in (
        lambda: Subnetwork.attach(model, neurons),
        lambda: profile_languages(model, word_tokenizer, {"aa": TEXTS}),
    ):
        with pytest.raises(ValueError, match=r"spread over several devices: cpu, meta \(meta: offloaded\)"):
            use()


@pytest.mark.parametrize(
    ("device_map", "device"),
    [({"": "cpu"}, "cpu"), ({"": 1}, "cuda:1"), ("cpu", "cpu"), ("auto", "cuda:3"), (None, "cuda:3")],
)
def test_the_dtype_is_chosen_for_the_named_device(monkeypatch, device_map, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ssetools.processes.state", lambda: SimpleNamespace(local_process_index=3))
    assert _device(device_map) == device


def test_unknown_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ssetools.text.hub.hub_reachable", lambda: False)
    with pytest.raises(ValueError, match="Unknown model 'gemma-3-720m': use 'gemma-3-270m'"):
        load_model("gemma-3-720m")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="Unknown model 'owner/name'"):
        load_model("owner/name")


def test_a_local_folder_loads_in_8_bit_and_frozen(folder):
    model, tokenizer = load_model(str(folder))
    assert model_source(model)["load_in_8bit"]
    assert type(model.model.layers[0].mlp.gate_proj).__name__ == "Linear8bitLt"
    assert type(model.lm_head).__name__ == "Linear"
    assert not any(p.requires_grad for p in model.parameters())
    assert tokenizer.bos_token_id == 2
    full, _ = load_model(str(folder), load_in_8bit=False, dtype="bfloat16")
    assert model_source(full)["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="Unknown dtype 'int7'"):
        load_model(str(folder), dtype="int7")


def test_a_loaded_model_is_saved_with_its_cache_switched_on(folder, tmp_path):
    model, _ = load_model(str(folder), load_in_8bit=False)
    model.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "saved" / name).read_text()).get("use_cache", True)


@pytest.mark.parametrize(
    ("family", "capability", "dtype"),
    [("gemma3_text", (7, 5), "float32"), ("llama", (7, 5), "float16"), ("gemma3_text", (8, 0), "bfloat16")],
)
def test_dtype_fits_gpu_and_model(monkeypatch, capsys, family, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr("ssetools.models._say_once", print)
    config = transformers.AutoConfig.for_model(family)
    assert str(choose_dtype(config, "cuda:0")) == f"torch.{dtype}"
    assert f"dtype {dtype} on cuda:0: this GPU" in capsys.readouterr().out


def test_a_4bit_base_is_recorded_and_trained(in_4bit, word_tokenizer, tmp_path):
    model, base = in_4bit
    full = AutoModelForCausalLM.from_pretrained(base)
    assert num_parameters(model) == num_parameters(full)
    assert quantization_of(model) == "nf4"
    assert model_precision(model) == {"load_in_8bit": False, "quantization": "nf4", "dtype": "float32"}
    assert model_precision(full)["quantization"] is None
    before = perplexity(model, word_tokenizer, TEXTS, window=9)
    neurons = families.some_neurons(model)
    result = finetune(
        model, word_tokenizer, TEXTS, neurons=neurons, run_dir=tmp_path, learning_rate=0.03, epochs=3, **SHORT
    )
    assert json.loads((tmp_path / "adapter.json").read_text())["base"]["quantization"] == "nf4"
    assert perplexity(model, word_tokenizer, TEXTS, window=9) < 0.99 * before
    assert all(delta.abs().sum() > 0 for delta in result.adapter.parameters()), "gradients reach every layer"
    with pytest.raises(
        ValueError, match="Merged into nf4 weights, what was trained would be rounded.* Load the 16-bit base"
    ):
        result.adapter.merge()
    with pytest.raises(ValueError, match="4-bit weights of model.layers.0.mlp.gate_proj cannot be read by neuron"):
        weight_change(result.adapter)
    result.adapter.detach()
    for only_ffn in (True, False):
        with pytest.raises(ValueError, match="nf4 weights cannot be trained"):
            WholeWeights(model, only_ffn)
    with pytest.raises(ValueError, match="A quantised base cannot be sharded"):
        shard_model(model)
    load_adapter(tmp_path, full).merge()
    assert perplexity(full, word_tokenizer, TEXTS, window=9) < before


def test_quantised_checkpoints_load_as_they_are_or_are_refused(in_4bit, word_tokenizer, tmp_path):
    in_4bit[0].save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="stored in nf4. Load the 16-bit model .*, or this one with load_in_8bit=False"
    ):
        load_model(str(tmp_path))
    model, _ = load_model(str(tmp_path), load_in_8bit=False)
    assert model_source(model)["quantization"] == "nf4"
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load_in_8bit in (True, False):
        with pytest.raises(ValueError, match=r"stored in gptq. Load the 16-bit model that it was made from\.$"):
            load_model(str(tmp_path), load_in_8bit)
    model = families.tiny_model("llama")
    model.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(ValueError, match="Training cannot read weights in awq"):
        Subnetwork.attach(model, families.some_neurons(model))


def test_a_model_with_an_adapter_is_not_profiled_as_its_base(word_tokenizer):
    model, texts = families.tiny_model("llama"), {"aa": TEXTS}
    counts = profile_languages(model, word_tokenizer, texts, window=9).counts
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with torch.no_grad():
        for delta in subnet.parameters():
            delta += 1
    with pytest.raises(ValueError, match="an adapter is attached to it: detach"):
        profile_languages(model, word_tokenizer, texts, window=9)
    with subnet.switched_off():
        assert torch.equal(profile_languages(model, word_tokenizer, texts, window=9).counts, counts)
    subnet.detach()
    assert torch.equal(profile_languages(model, word_tokenizer, texts, window=9).counts, counts)


def test_peft_models_are_refused_or_scored_as_they_say(word_tokenizer):
    model = families.tiny_model("llama")
    neurons, untouched = families.some_neurons(model), perplexity(model, word_tokenizer, TEXTS, window=9)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False))
    for use in (
        lambda: perplexity(wrapped, word_tokenizer, TEXTS),
        lambda: finetune(wrapped, word_tokenizer, TEXTS, neurons=neurons, **SHORT),
        lambda: profile_languages(wrapped, word_tokenizer, {"aa": TEXTS}),
    ):
        with pytest.raises(ValueError, match="PEFT adapter|This is a PeftModel around a model"):
            use()
    tuned = perplexity(wrapped.get_base_model(), word_tokenizer, TEXTS, window=9)
    assert tuned != pytest.approx(untouched, rel=1e-3)
    for method in ("lape", "lora", "full"):
        with pytest.raises(ValueError, match="Training needs a base model, and this one carries a PEFT adapter"):
            finetune(wrapped.get_base_model(), word_tokenizer, TEXTS, method, neurons=neurons, **SHORT)
    with pytest.raises(ValueError, match="Profiling needs a base model"):
        profile_languages(wrapped.get_base_model(), word_tokenizer, {"aa": TEXTS})
    merged = wrapped.merge_and_unload()
    assert perplexity(merged, word_tokenizer, TEXTS, window=9) == pytest.approx(tuned, rel=1e-4)
    profile_languages(merged, word_tokenizer, {"aa": TEXTS}, window=9)


def test_a_copy_of_a_model_is_the_same_model(folder, tmp_path, word_tokenizer):
    model, _ = load_model(str(folder), load_in_8bit=False, dtype="float32")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    subnet.save(tmp_path / "adapter")
    subnet.detach()
    model.save_pretrained(tmp_path / "in shards", max_shard_size="20kB")
    word_tokenizer.save_pretrained(tmp_path / "in shards")
    assert len(list((tmp_path / "in shards").glob("model-*.safetensors"))) > 2
    copy, _ = load_model(str(tmp_path / "in shards"), load_in_8bit=False)
    assert model_source(copy)["revision"] != model_source(model)["revision"]
    Subnetwork.load(tmp_path / "adapter", copy).detach()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 7] += 0.1  # one neuron, as a merge changes it
    model.save_pretrained(tmp_path / "other")
    shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True, ignore=lambda *_: ["model.safetensors"])
    other, _ = load_model(str(tmp_path / "other"), load_in_8bit=False)
    with pytest.raises(ValueError, match="was trained for weights"):
        Subnetwork.load(tmp_path / "adapter", other)
    old = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    del old["base"]["weights"]  # as in files written before weights were recorded
    (tmp_path / "adapter" / "adapter.json").write_text(json.dumps(old))
    Subnetwork.load(tmp_path / "adapter", load_model(str(folder), load_in_8bit=False)[0])
    with pytest.raises(ValueError, match="was trained for revision"):
        Subnetwork.load(tmp_path / "adapter", copy)


@pytest.mark.parametrize(
    ("recorded", "source", "differs"),
    [
        ({"model": "a", "revision": "1"}, {"model": "b", "revision": "1"}, None),
        ({"model": "a", "revision": "1", "weights": "x"}, {"model": "b", "revision": "2", "weights": "x"}, None),
        ({"revision": "1", "weights": "x"}, {"revision": "2", "weights": "y"}, "weights 'x', not 'y'"),
        ({"model": "a", "revision": "1"}, {"model": "a", "revision": "2", "weights": "y"}, "revision '1', not '2'"),
        ({"model": "a", "revision": None}, {"model": "b", "revision": "2"}, "model 'a', not 'b'"),
        ({}, {"model": "b", "revision": "2"}, None),
    ],
)
def test_models_are_compared_by_weights_then_revision_then_name(recorded, source, differs):
    assert model_mismatch(recorded, source) == differs


@pytest.mark.parametrize("family", ["gptj", "gemma3"])
def test_resized_tied_or_untied_embeddings_and_no_bos(family, word_tokenizer):
    """GPT-J has biases in its FFN and head, and a head of its own; Gemma's head is tied."""
    model = families.tiny_model(family)
    model.resize_token_embeddings(103, mean_resizing=False)
    model.requires_grad_(False)
    tokenizer = families.word_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = None
    profile = profile_languages(model, tokenizer, {"aa": TEXTS, "bb": TEXTS[:20]}, window=9)
    assert profile.tokens.tolist() == [20 * 10] * 2
    before = perplexity(model, tokenizer, TEXTS, window=9)
    finetune(model, tokenizer, TEXTS, neurons=families.some_neurons(model), learning_rate=0.03, **SHORT)
    assert perplexity(model, tokenizer, TEXTS, window=9) < before
