"""Speed against the limits, as ratios measured in one run: python benchmarks/speed.py [results.json]

Profiling against the bare forward pass of the body, and a training step against the same step with everything frozen
but one vector in the first layer, which any method that trains the first layer has to pay.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from ssetools import Subnetwork, find_ffn_blocks, load_model, load_texts, pack_tokens, profile_languages
from ssetools.loss import body_of, chunked_loss
from ssetools.models import evaluation_mode
from ssetools.paths import write_json
from ssetools.provenance import provenance
from ssetools.training import peak_memory_gib

WINDOW, BATCH, ROUNDS, NEURONS_PER_LAYER = 256, 2, 3, 24


def seconds_of(variants: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Times each variant in turn, round after round, so that a slow spell of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for function in variants.values():
        function()
    for _ in range(ROUNDS):
        for name, function in variants.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def profiling(model, tokenizer) -> dict:
    """Tokens per second of counting, and of the body alone on the same windows."""
    documents = load_texts("udhr", "en", "train") + load_texts("udhr", "fr", "train")
    windows = pack_tokens(tokenizer, documents, WINDOW)[: 2 * BATCH]
    texts = {"en": [tokenizer.decode(torch.cat([w[1:] for w in windows]))]}
    tokens = 2 * BATCH * (WINDOW - 1)

    def bare():
        with torch.inference_mode(), evaluation_mode(model):
            for i in range(0, len(windows), BATCH):
                body_of(model)(input_ids=torch.stack(windows[i : i + BATCH]).to(model.device), use_cache=False)

    def counting():
        profile_languages(model, tokenizer, texts, tokens - 20, window=WINDOW, batch_size=BATCH)

    found = seconds_of({"bare": bare, "counting": counting})
    bare_rate, counting_rate = tokens / found["bare"], (tokens - 20) / found["counting"]
    return {
        "bare_tokens_per_second": round(bare_rate, 1),
        "counting_tokens_per_second": round(counting_rate, 1),
        "counting_over_bare": round(counting_rate / bare_rate, 3),
    }


def training(model) -> dict:
    """Seconds of a forward and backward pass: the limit, and a subnetwork."""
    ids = torch.randint(5, 200_000, (BATCH, WINDOW), device=model.device)
    blocks = find_ffn_blocks(model)
    vector = torch.zeros(blocks[0].hidden_size, device=model.device, requires_grad=True)
    neurons = [torch.arange(NEURONS_PER_LAYER) for _ in blocks]

    def step():
        with evaluation_mode(model):
            chunked_loss(model, ids).backward()

    def limit():
        hook = blocks[0].down.module.register_forward_hook(lambda m, a, out: out + vector.to(out.dtype))
        step()
        hook.remove()

    def subnetwork():
        subnet = Subnetwork.attach(model, neurons)
        step()
        subnet.detach()

    found = seconds_of({"limit": limit, "subnetwork": subnetwork})
    return {
        "limit_seconds": round(found["limit"], 3),
        "subnetwork_seconds": round(found["subnetwork"], 3),
        "subnetwork_over_limit": round(found["subnetwork"] / found["limit"], 3),
        "tokens_per_step": BATCH * WINDOW,
        "neurons": NEURONS_PER_LAYER * len(blocks),
    }


def main() -> None:
    """Measures both and prints or writes the numbers."""
    model, tokenizer = load_model()
    results = {"profiling": profiling(model, tokenizer), "training": training(model)}
    results |= {"peak_memory_gib": round(peak_memory_gib(), 2), **provenance()}
    for part in ("profiling", "training"):
        for name, value in results[part].items():
            print(f"{part:<10} {name:<28} {value}")
    print(f"peak memory of the process: {results['peak_memory_gib']} GiB")
    if len(sys.argv) > 1:
        write_json(sys.argv[1], results)


if __name__ == "__main__":
    main()
