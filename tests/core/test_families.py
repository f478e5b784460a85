"""Every family, in fp32 and 8-bit: attach, train, merge, detach, export and count, against brute force."""

import contextlib
import json

import families
import pytest
import torch
from peft import PeftModel

from ssetools.loss import chunked_loss
from ssetools.models import evaluation_mode, has_8bit_layers
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
    assert has_8bit_layers(model) == load_in_8bit
    base, weights = logits(model), tensors(model)
    neurons = families.some_neurons(model)
    subnet = Subnetwork.attach(model, neurons)
    blocks = find_ffn_blocks(model)
    assert torch.equal(logits(model), base), "zero deltas must change no logit"
    assert not any(p.requires_grad for p in model.parameters())
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
    monkeypatch.setattr("ssetools.training.exports.UNIFORM_RANKS", (2,))
    with pytest.raises(ValueError, match=r"needs rank .* vLLM takes no rank above 2 \(\d+ of \d+ modules need more"):
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
    import gguf

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
    switched = Subnetwork.stack(folders, model, (1, 0))
    for weights, expected in (((0, 1), alone["b"]), ((1, 0), alone["a"]), ((0, 0), base)):
        switched.weigh(weights)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="2 adapters, 1 weights"):
        switched.weigh([1.0])
    switched.detach()
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
                    expected[layer] += (activation_of(model, layer)(gate) > 0).sum(0)
    assert torch.equal(profile.counts[0], expected)
    assert profile.tokens.tolist() == [len(ids)]


def activation_of(model, layer):
    """The model's own activation function in a gated block, found without the code under test."""
    parent = model.get_submodule(find_ffn_blocks(model)[layer].path)
    return parent.act_fn if hasattr(parent, "act_fn") else parent.activation_fn


@pytest.mark.parametrize("name", ["MixtralConfig", "Qwen3MoeConfig"])
def test_mixture_of_experts_is_refused_by_name(name):
    import transformers

    options = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    options |= {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**options))
    with pytest.raises(ValueError, match="mixture-of-experts"):
        find_ffn_blocks(model)


def test_a_model_without_ffn_is_refused():
    with pytest.raises(ValueError, match="Sequential is not a causal language model"):
        find_ffn_blocks(torch.nn.Sequential(torch.nn.Linear(4, 4)))
