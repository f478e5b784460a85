"""A training step of every method against the limit, in one run: python benchmarks/training.py [results.json]

The limit is the frozen body, forward and backward, plus one product of the head: what any method that trains the first
layer and takes an exact loss has to pay. "all words" is `lape` with a loss whose gradient leaves no word out. "clone" is
the way of the code that came with the paper: each forward pass copies the weight matrices and writes the trained rows
in. "plain loss" is `lape` with the model's own logits and cross-entropy. Times are of steps interleaved in one process, in an
order that turns with each round, so that a slow spell of the machine meets all; peak memory is of a process of its
own for each method. Options: --models, --bits, --rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from ssetools import METHODS, find_ffn_blocks, load_model, loss
from ssetools.evaluation.intervals import INTERVAL
from ssetools.files import provenance, write_json
from ssetools.loss import Head, chunked_loss
from ssetools.models import body_of, evaluation_mode, int8_scales, num_parameters
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory
from ssetools.training.methods import attach_method

WINDOW, BATCH, SHARE = 256, 2, 0.003  # of the model's weights trained, as in the walk-through
SHAPES = {
    "llama-1024": {
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "intermediate_size": 4096,
        "vocab_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "vocab_size": 128_256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
VARIANTS = ("limit", "lape", "all words", "plain loss", "random", "lora-equal", "lora", "ia3", "clone", "ffn", "full")


def load(name: str, bits: int) -> nn.Module:
    """Loads the embedded model, or makes a random one of a named shape, in 8 or 16 bits."""
    if name not in SHAPES:
        return load_model(name, load_in_8bit=bits == 8)[0]
    config = transformers.LlamaConfig(**SHAPES[name], tie_word_embeddings=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made = in_8bit(made) if bits == 8 else made
    made.config._name_or_path = name
    return made.requires_grad_(False)


def in_8bit(model: nn.Module) -> nn.Module:
    """Replaces the linear layers by bitsandbytes' 8-bit ones, all but the head."""
    import bitsandbytes

    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            layer = bitsandbytes.nn.Linear8bitLt(
                module.in_features, module.out_features, bias=False, has_fp16_weights=False, device="meta"
            )
            weight = bitsandbytes.nn.Int8Params(module.weight.data.cpu(), has_fp16_weights=False, requires_grad=False)
            layer.weight = weight.to(module.weight.device)
            model.set_submodule(path, layer)
    return model


def variants_for(bits: int) -> list[str]:
    """Names of the variants that a base of so many bits can train."""
    return [name for name in VARIANTS if bits == 16 or name not in METHODS or METHODS[name].on_8bit]


@contextlib.contextmanager
def attached(model: nn.Module, variant: str):
    """Attaches a variant for the length of a `with` block and gives its step."""
    neurons = some_neurons(model)
    if variant == "limit":
        parameters, undo = limit(model)
    elif variant == "clone":
        parameters, undo = cloned(model, neurons)
    else:
        adapter = attach_method(model, "lape" if variant in LOSSES else variant, neurons)
        adapter.dropout(True)
        parameters, undo = list(adapter.parameters()), adapter.detach
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    ids = torch.randint(5, 8000, (BATCH, WINDOW), device=next(model.parameters()).device)

    def step():
        with evaluation_mode(model):
            LOSSES.get(variant, own_loss)(model, ids)
        if variant not in ("limit", "clone"):
            adapter.collect_gradients()
        optimizer.step()
        if variant not in ("limit", "clone"):
            adapter.publish()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    try:
        yield step
    finally:
        undo()


def some_neurons(model: nn.Module) -> list[torch.Tensor]:
    """Takes as many neurons in each layer as make up SHARE of the model's weights."""
    blocks = find_ffn_blocks(model)
    count = max(1, round(SHARE * num_parameters(model) / blocks[0].weights_per_neuron / len(blocks)))
    return [torch.arange(count) for _ in blocks]


def own_loss(model: nn.Module, ids: torch.Tensor) -> None:
    """Takes the library's loss and its gradient."""
    chunked_loss(model, ids).backward()


def plain_loss(model: nn.Module, ids: torch.Tensor) -> None:
    """Takes the loss as everybody writes it: all logits, in float32, then cross-entropy."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()


def all_words_loss(model: nn.Module, ids: torch.Tensor) -> None:
    """Takes the library's loss with no word left out of the gradient."""
    limit, loss.LARGE_VOCABULARY = loss.LARGE_VOCABULARY, sys.maxsize
    try:
        own_loss(model, ids)
    finally:
        loss.LARGE_VOCABULARY = limit


def one_product(model: nn.Module, ids: torch.Tensor) -> None:
    """Multiplies the hidden states by the head, and sends any gradient back through the body."""
    hidden = body_of(model)(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
    with torch.no_grad():
        head = Head(model)
        for block in head.blocks(len(hidden)):
            head.logits(hidden, block)
    hidden.backward(hidden.detach())


LOSSES = {"limit": one_product, "all words": all_words_loss, "plain loss": plain_loss}


def limit(model: nn.Module):
    """Trains one vector added to the output of the first layer's FFN."""
    first = find_ffn_blocks(model)[0]
    vector = nn.Parameter(torch.zeros(first.hidden_size, device=first.down.module.weight.device))
    hook = first.down.module.register_forward_hook(lambda module, args, out: out + vector.to(out.dtype))
    return [vector], hook.remove


def cloned(model: nn.Module, neurons):
    """Trains rows that each forward pass writes into a copy of the weight matrix."""
    parameters, before = [], []
    for block, ids in zip(find_ffn_blocks(model), neurons, strict=True):
        for projection in block.projections:
            module, axis = projection.module, projection.axis
            places = (ids + projection.offset).to(module.weight.device)
            rows = nn.Parameter(full_weight(module).index_select(axis, places).float())
            before.append((module, module.forward))
            module.forward = lambda x, m=module, a=axis, i=places, r=rows: F.linear(
                x, full_weight(m).index_copy(a, i, r.to(x.dtype))
            )
            parameters.append(rows)

    def undo():
        for module, forward in before:
            module.forward = forward

    return parameters, undo


def full_weight(module: nn.Module) -> torch.Tensor:
    """The weight in 16 bits, dequantised if need be."""
    if module.weight.dtype != torch.int8:
        return module.weight
    return (module.weight.data * (int8_scales(module)[:, None] / 127)).to(torch.bfloat16)


def times(model: nn.Module, variants: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each variant, round after round."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds):
        for name in variants[i % len(variants) :] + variants[: i % len(variants)]:
            with attached(model, name) as step:
                step()
                began = time.perf_counter()
                step()
                found[name].append(time.perf_counter() - began)
    return found


def over_limit(seconds: dict[str, list[float]], variant: str, resamples: int = 2000) -> dict[str, float]:
    """A variant's median time over the limit's, with a 95% interval over resampled rounds."""
    own, limits = (torch.tensor(seconds[name], dtype=torch.float64) for name in (variant, "limit"))
    picks = torch.randint(len(own), (resamples, len(own)), generator=torch.Generator().manual_seed(0))
    drawn = own[picks].median(1).values / limits[picks].median(1).values
    low, high = drawn.quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    ratio = statistics.median(seconds[variant]) / statistics.median(seconds["limit"])
    return {"over_limit": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}


def peak(name: str, bits: int, variant: str) -> dict[str, float]:
    """Peak memory of two steps in a process of its own, and what the loaded model took before them."""
    command = [sys.executable, __file__, "--peak", variant, "--models", name, "--bits", str(bits)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak_here(name: str, bits: int, variant: str) -> None:
    """Measures in this process and prints JSON."""
    model = load(name, bits)
    gc.collect()
    if sys.platform == "linux":  # what loading has freed goes back to the system, or it would count as in use
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()
    before = peak_memory_gib()
    with attached(model, variant) as step:
        step()
        step()
    print(json.dumps({"peak_gib": round(peak_memory_gib(), 3), "loaded_gib": round(before, 3)}))


def main() -> None:
    """Measures all variants of all models and prints a table; writes JSON when a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?")
    parser.add_argument("--models", nargs="+", default=["gemma-3-270m", "llama-1024"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_here(arguments.models[0], arguments.bits[0], arguments.peak)
        return
    rows = []
    for name in arguments.models:
        for bits in arguments.bits:
            variants = variants_for(bits)
            model = load(name, bits)
            seconds = times(model, variants, arguments.rounds)
            del model
            for variant in variants:
                row = {"model": name, "bits": bits, "variant": variant}
                row |= {"seconds": round(statistics.median(seconds[variant]), 4), **over_limit(seconds, variant)}
                rows.append(row | peak(name, bits, variant))
                print(
                    f"{name:<14}{bits:>3} bits  {variant:<12}{row['seconds']:>9.3f} s  {row['over_limit']:.3f} of the "
                    f"limit ({row['low']:.3f} to {row['high']:.3f})  peak {rows[-1]['peak_gib']:.2f} GiB",
                    flush=True,
                )
    if arguments.output:
        facts = {"tokens_per_step": WINDOW * BATCH, "share_trained": SHARE, "threads": torch.get_num_threads()}
        write_json(arguments.output, {"rows": rows, **facts, **provenance()})


if __name__ == "__main__":
    main()
