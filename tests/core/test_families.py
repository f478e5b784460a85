"""Every family, in fp32 and 8-bit: attach, train, merge, detach, export and count, against brute force."""

import contextlib
import json

import families
import gguf
import pytest
import torch
import transformers
from peft import PeftModel

from ssetools import load_model, perplexity
from ssetools.loss import chunked_loss
from ssetools.models import evaluation_mode, quantization_of
from ssetools.neurons.counts import profile_languages
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.training.subnetwork import Subnetwork

ALL = pytest.mark.parametrize("family", families.CONFIGS)
# Falcon's linear layers are of a class of its own, which bitsandbytes does not convert.
BOTH = pytest.mark.parametrize(
    ("family", "load_in_8bit"),
    [(f, False) for f in families.CONFIGS] + [(f, True) for f in families.CONFIGS if f != "falcon"],
    ids=lambda value: {False: "fp32", True: "int8"}.get(value, value),
)


def logits(model):
    with torch.no_grad(), evaluation_mode(model):
        return model(input_ids=families.tokens(), use_cache=False).logits


def tensors(model):
    """Every parameter and buffer, bit by bit; int8 weights and their scales too."""
    found = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {**found, **{n: b.detach().clone() for n, b in model.named_buffers()}}


def train_a_little(model, subnet, steps=3):
    optimizer = torch.optim.AdamW(subnet.parameters(), lr=0.05)
    for _ in range(steps):
        with evaluation_mode(model):
            chunked_loss(model, families.tokens(batch=16, length=24)).backward()
        optimizer.step()
        optimizer.zero_grad()


def changed_entries(block, before, after):
    """Where the weights of a block's projections differ, as masks [neurons, hidden] over all projections."""
    masks = []
    for projection in block.projections:
        key = f"{projection.path}.weight"
        differ = before[key] != after[key]
        differ = differ.T if projection.transposed else differ
        rows = differ.T if projection.name == "down" else differ
        masks.append(rows[projection.offset : projection.offset + block.num_neurons])
    return torch.stack(masks)


@BOTH
def test_attach_train_detach(family, load_in_8bit):
    model = families.tiny_model(family, load_in_8bit)
    assert quantization_of(model) == ("int8" if load_in_8bit else None)
    base, weights = logits(model), tensors(model)
    neurons = families.some_neurons(model)
    subnet = Subnetwork.attach(model, neurons)
    blocks = find_ffn_blocks(model)
    assert torch.equal(logits(model), base), "zero deltas must change no logit"
    assert {p for p in model.parameters() if p.requires_grad} == set(subnet.parameters())
    assert subnet.num_parameters == sum(len(n) * b.weights_per_neuron for n, b in zip(neurons, blocks, strict=True))
    train_a_little(model, subnet)
    assert all(p.abs().min() > 0 for p in subnet.parameters()), "every trained slice must have moved"
    assert not torch.allclose(logits(model), base, atol=1e-3)
    after = tensors(model)
    assert all(torch.equal(weights[name], after[name]) for name in weights), "training must not touch the base"
    subnet.detach()
    assert torch.equal(logits(model), base), "detach must restore the base"


@ALL
def test_merge_moves_the_chosen_neurons_and_nothing_else(family):
    model = families.tiny_model(family)
    before, neurons = tensors(model), families.some_neurons(model)
    subnet = Subnetwork.attach(model, neurons)
    train_a_little(model, subnet)
    subnet.scale = 0.5
    attached = logits(model)
    subnet.merge()
    torch.testing.assert_close(logits(model), attached, rtol=1e-4, atol=1e-4)
    after = tensors(model)
    touched = set()
    for block, ids in zip(find_ffn_blocks(model), neurons, strict=True):
        expected = torch.zeros(block.num_neurons, dtype=torch.bool)
        expected[ids] = True
        for mask in changed_entries(block, before, after):
            assert torch.equal(mask.any(1), expected)
        touched |= {f"{p.path}.weight" for p in block.projections}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in touched)


@BOTH
def test_peft_export_is_the_same_function(family, load_in_8bit, tmp_path):
    model = families.tiny_model(family, load_in_8bit)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    train_a_little(model, subnet)
    subnet.scale = 0.5
    attached = logits(model)
    subnet.to_peft(tmp_path / "peft")
    subnet.detach()
    tuned = PeftModel.from_pretrained(model, tmp_path / "peft")
    torch.testing.assert_close(logits(tuned), attached, rtol=1e-4, atol=1e-4)


@ALL
def test_a_uniform_rank_is_the_same_function(family, tmp_path, monkeypatch):
    model = families.tiny_model(family)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    train_a_little(model, subnet)
    subnet.scale = 0.5
    attached = logits(model)
    subnet.to_peft(tmp_path / "peft", uniform_rank=True)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] in (8, 16)
    assert not config["rank_pattern"]
    monkeypatch.setattr("ssetools.training.adapter.UNIFORM_RANKS", (2,))
    with pytest.raises(ValueError, match=r"needs rank .* vLLM takes no rank above 2: export"):
        subnet.to_peft(tmp_path / "other", uniform_rank=True)
    assert not (tmp_path / "other").exists()
    subnet.detach()
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(model, tmp_path / "peft")), attached, rtol=1e-4, atol=1e-4
    )


GGUF_NAMES = {  # what llama.cpp calls the gate, up and down projections of these families
    "llama": ("ffn_gate", "ffn_up", "ffn_down"),
    "gemma3": ("ffn_gate", "ffn_up", "ffn_down"),
    "cohere": ("ffn_gate", "ffn_up", "ffn_down"),
    "phi3": ("ffn_up", "ffn_down"),
    "gpt2": ("ffn_up", "ffn_down"),
    "gpt_neox": ("ffn_up", "ffn_down"),
}


@pytest.mark.parametrize("family", GGUF_NAMES)
def test_a_gguf_adapter_holds_the_same_change_of_every_matrix(family, tmp_path):
    model = families.tiny_model(family)
    before = tensors(model)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    train_a_little(model, subnet)
    subnet.scale = 0.5
    reader = gguf.GGUFReader(subnet.to_gguf_lora(tmp_path / "adapter.gguf"))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert (facts["general.type"], facts["adapter.type"], facts["adapter.lora.alpha"]) == ("adapter", "lora", 0.0)
    held = {tensor.name: torch.tensor(tensor.data.copy()).float() for tensor in reader.tensors}
    subnet.merge()
    after, compared = tensors(model), set()
    for layer, block in enumerate(find_ffn_blocks(model)):
        paths = dict.fromkeys(projection.path for projection in block.projections)
        for path, name in zip(paths, GGUF_NAMES[family], strict=True):
            change = after[f"{path}.weight"] - before[f"{path}.weight"]
            change = change.T if block.down.transposed else change
            names = [f"blk.{layer}.{name}.weight.lora_{half}" for half in "ab"]
            a, b = (held[name] for name in names)
            torch.testing.assert_close(b @ a, change, rtol=2e-3, atol=2e-4)
            compared |= set(names)
    assert compared == set(held)


def test_gguf_refuses_a_family_that_llama_cpp_does_not_know(tmp_path):
    model = families.tiny_model("xglm")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with pytest.raises(ValueError, match="llama.cpp has no model family 'xglm'"):
        subnet.to_gguf_lora(tmp_path / "adapter.gguf")
    assert not list(tmp_path.iterdir())


@BOTH
def test_adapters_switch_and_stack(family, load_in_8bit, tmp_path):
    model = families.tiny_model(family, load_in_8bit)
    base, alone, sets = logits(model), {}, {"a": families.some_neurons(model), "b": None}
    sets["b"] = [(ids + 1) % block.num_neurons for ids, block in zip(sets["a"], find_ffn_blocks(model), strict=True)]
    for name, neurons in sets.items():
        subnet = Subnetwork.attach(model, [ids.sort().values for ids in neurons])
        train_a_little(model, subnet)
        subnet.scale = 0.5
        subnet.save(tmp_path / name)
        alone[name] = logits(model)
        subnet.detach()
    folders = [tmp_path / name for name in sets]
    for weights, expected in (((1, 0), alone["a"]), ((0, 1), alone["b"]), ((0, 0), base)):
        stacked = Subnetwork.stack(folders, model, weights)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        stacked.detach()
    stacked = Subnetwork.stack(folders[:1] * 2, model, (0.75, 0.25))
    torch.testing.assert_close(logits(model), alone["a"], rtol=1e-4, atol=1e-4)
    stacked.detach()
    with pytest.raises(ValueError, match="2 folders, 1 weights"):
        Subnetwork.stack(folders, model, [1.0])


@BOTH
def test_save_and_load(family, load_in_8bit, tmp_path):
    model = families.tiny_model(family, load_in_8bit)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    train_a_little(model, subnet)
    attached = logits(model)
    subnet.save(tmp_path)
    subnet.detach()
    again = Subnetwork.load(tmp_path, model)
    assert torch.equal(logits(model), attached)
    assert again.num_parameters == subnet.num_parameters


@contextlib.contextmanager
def recorded_down_inputs(model):
    """Collects what enters each down projection: for an FFN without gate, the activations themselves."""
    seen = []
    hooks = [
        block.down.module.register_forward_pre_hook(lambda m, args, i=i: seen.append((i, args[0].detach().clone())))
        for i, block in enumerate(find_ffn_blocks(model))
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@BOTH
def test_counts_equal_brute_force(family, load_in_8bit, word_tokenizer):
    model = families.tiny_model(family, load_in_8bit)
    blocks = find_ffn_blocks(model)
    text = ["w5 w9 w11 w60 w61 w7 w8", "w90 w3 w4 w5 w6"]
    profile = profile_languages(model, word_tokenizer, {"aa": text}, window=9)
    ids = [i for t in text for i in word_tokenizer(t + "\n", add_special_tokens=False)["input_ids"]]
    windows = [torch.tensor([[word_tokenizer.bos_token_id, *ids[i : i + 8]]]) for i in range(0, len(ids), 8)]
    expected = torch.zeros_like(profile.counts[0])
    with torch.no_grad(), evaluation_mode(model):
        for window in windows:
            outputs = {}
            hooks = [
                block.inputs[0].module.register_forward_hook(
                    lambda m, a, o, i=i, kept=outputs: kept.update({i: o.detach()})
                )
                for i, block in enumerate(blocks)
            ]
            with recorded_down_inputs(model) as entering:
                model(input_ids=window, use_cache=False)
            for hook in hooks:
                hook.remove()
            for layer, hidden in entering:
                hidden = hidden.view(-1, blocks[layer].num_neurons)[1:]
                if len(blocks[layer].inputs) == 1:
                    expected[layer] += (hidden > 0).sum(0)
                else:  # gated: recompute the activation from the module's own parts
                    gate = outputs[layer].view(len(hidden) + 1, -1)[1:, : blocks[layer].num_neurons]
                    expected[layer] += ((activation_of(model, layer)(gate) > 0) & (hidden != 0)).sum(0)
    assert torch.equal(profile.counts[0], expected)
    assert profile.tokens.tolist() == [len(ids)]


def activation_of(model, layer):
    """The model's own activation function in a gated block, found without the code under test."""
    parent = model.get_submodule(find_ffn_blocks(model)[layer].path)
    return getattr(parent, "act_fn", None) or getattr(parent, "activation_fn", None) or torch.nn.functional.silu


@pytest.mark.parametrize("name", ["MixtralConfig", "Qwen3MoeConfig"])
def test_mixture_of_experts_is_refused_by_name(name):
    options = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    options |= {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**options))
    with pytest.raises(ValueError, match="mixture-of-experts"):
        find_ffn_blocks(model)


def test_sparse_layers_count_what_enters_the_down_projection(word_tokenizer):
    model, shares = families.tiny_model("gemma3n"), []
    text = {"aa": [" ".join(f"w{3 + (7 * i + k * k) % 90}" for k in range(11)) for i in range(30)]}
    profile = profile_languages(model, word_tokenizer, text, window=9)
    with recorded_down_inputs(model) as entering, torch.no_grad():
        model(input_ids=families.tokens(batch=8, length=24), use_cache=False)
    shares = [(hidden != 0).float().mean().item() for _, hidden in entering]
    assert shares[0] < 0.3, "80% of the gate's outputs are set to zero"
    counted = (profile.counts[0] / profile.tokens[0]).mean(1)
    assert counted[0] == pytest.approx(shares[0], abs=0.05)


def tiny(name, **options):
    """A configuration of the family, small where `options` say so."""
    return getattr(transformers, f"{name}Config")(**options)


TEXT, VISION = families.CONFIGS["gemma3"][1], {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
WRAPPERS = {
    "gemma3": lambda: tiny("Gemma3", text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4),
    "mistral3": lambda: tiny(
        "Mistral3",
        text_config={**TEXT, "model_type": "mistral"},
        vision_config={**VISION, "model_type": "pixtral"},
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_multimodal_wrapper_is_trained_in_its_text_decoder(name, tmp_path, word_tokenizer):
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(WRAPPERS[name]()).save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), load_in_8bit=False, dtype="float32")
    blocks = find_ffn_blocks(model)
    assert [b.path for b in blocks] == [f"model.language_model.layers.{i}.mlp" for i in range(2)]
    assert {b.num_neurons for b in blocks} == {48}
    before, text = tensors(model), ["w5 w6 w7 w8 w9"] * 9
    assert profile_languages(model, tokenizer, {"aa": text}, window=9).tokens.tolist() == [54]
    score = perplexity(model, tokenizer, text, window=9)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    train_a_little(model, subnet)
    attached = logits(model)
    assert perplexity(model, tokenizer, text, window=9) != score
    adapter = gguf.GGUFReader(subnet.to_gguf_lora(tmp_path / "adapter.gguf"))
    assert {tensor.name.rpartition(".weight")[0] for tensor in adapter.tensors} == {
        f"blk.{layer}.ffn_{projection}" for layer in range(2) for projection in ("gate", "up", "down")
    }
    subnet.merge()
    torch.testing.assert_close(logits(model), attached, rtol=1e-4, atol=1e-4)
    changed = {name for name, value in tensors(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"{p.path}.weight" for b in blocks for p in b.projections}


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}


@pytest.mark.parametrize(
    ("model_class", "config", "prefix"),
    [
        ("IdeficsForVisionText2Text", lambda: tiny("Idefics", **SMALL), "model.layers."),
        (
            "Idefics2ForConditionalGeneration",
            lambda: tiny("Idefics2", text_config={**SMALL, "model_type": "mistral"}),
            "model.text_model.layers.",
        ),
        (
            "VideoLlavaForConditionalGeneration",
            lambda: tiny("VideoLlava", text_config={**SMALL, "model_type": "llama"}),
            "model.language_model.layers.",
        ),
        (
            "WhisperForCausalLM",
            lambda: tiny("Whisper", d_model=36, decoder_layers=3, decoder_ffn_dim=48, vocab_size=97, pad_token_id=0),
            "model.decoder.layers.",
        ),
        ("CodeGenForCausalLM", lambda: tiny("CodeGen", n_embd=32, n_layer=3, n_inner=48, n_head=4), "transformer.h."),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_only_the_text_decoder_is_searched(model_class, config, prefix):
    with torch.device("meta"):
        model = getattr(transformers, model_class)._from_config(config())
    blocks = find_ffn_blocks(model)
    assert [b.path.startswith(f"{prefix}{i}") for i, b in enumerate(blocks)] == [True] * 3
    assert {b.num_neurons for b in blocks} == {48}


def test_models_whose_neurons_cannot_be_found_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="Sequential is not a causal language model"):
        find_ffn_blocks(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    model = families.tiny_model("llama")
    model.model.layers[1].mlp = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"No FFN neurons found in llama: layer 1 \(model.layers.1\) has 0 FFNs"):
        find_ffn_blocks(model)
    model.model.layers[1] = torch.nn.ModuleList([families.tiny_model("llama").model.layers[i] for i in range(2)])
    with pytest.raises(ValueError, match="layer 1 .* has 2 FFNs of a known layout"):
        find_ffn_blocks(model)
    model.model.layers[1] = families.tiny_model("gpt_neox").gpt_neox.layers[0]
    model.model.layers[0].mlp = type(model.model.layers[0].mlp)(tiny("Llama", hidden_size=32, intermediate_size=64))
    with pytest.raises(ValueError, match=r"differ in \(neurons, hidden size\): \[\(48, 32\), \(64, 32\)\]"):
        find_ffn_blocks(model)
    del model.model.layers
    with pytest.raises(ValueError, match="No decoder layers found in LlamaForCausalLM"):
        find_ffn_blocks(model)
    model = families.tiny_model("opt")
    model.model.decoder.layers[0].fc2 = torch.nn.Linear(24, 32)
    with pytest.raises(ValueError, match="an FFN of an unknown layout: fc2 takes 24 inputs, .* give 48 neurons"):
        find_ffn_blocks(model)
