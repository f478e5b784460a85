"""Counting against the bare forward pass, and selection at scale: python benchmarks/profiling.py [results.json]

Counting and the bare pass of the body see the very same windows, in turn. Selection runs on random counts, each size
in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from training import BATCH, WINDOW, load

from ssetools import ActivationProfile, select_neurons
from ssetools.files import provenance, write_json
from ssetools.models import body_of, evaluation_mode
from ssetools.neurons.counts import counting
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory

ROUNDS = 15
SIZES = [(25, 32, 14336), (50, 32, 14336), (100, 32, 14336), (200, 32, 14336), (100, 32, 3584), (100, 32, 7168)]


def counting_speed(name: str) -> dict:
    """Tokens per second of counting and of the bare body, by turns, and the median of their ratios."""
    model = load(name, 8)
    device = next(model.parameters()).device
    ids = torch.randint(5, 8000, (2 * BATCH, WINDOW), device=device)
    seconds: dict[str, list[float]] = {"bare": [], "counting": []}

    def timed(kind, function):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[kind].append(time.perf_counter() - began)

    with torch.inference_mode(), evaluation_mode(model):
        for _ in range(ROUNDS + 1):
            timed("bare", lambda: body_of(model)(input_ids=ids, use_cache=False))
            with counting(model) as count:
                timed("counting", lambda count=count: count(ids, 1))
    ratios = [a / b for a, b in zip(seconds["bare"][1:], seconds["counting"][1:], strict=True)]
    speeds = {
        f"{kind}_tokens_per_second": round(ids.numel() / statistics.median(s[1:]), 1) for kind, s in seconds.items()
    }
    return {"model": name, **speeds, "counting_over_bare": round(statistics.median(ratios), 3)}


def selection_here(languages: int, layers: int, neurons: int) -> None:
    """Selects from random counts in this process, and prints seconds and peak memory as JSON."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.empty(languages, layers, neurons, dtype=torch.long)
    for row in counts:
        row.copy_((torch.rand(layers, neurons, generator=generator) ** 4 * 10_000).long())
    profile = ActivationProfile(counts, torch.full((languages,), 10_000), [f"l{i}" for i in range(languages)])
    reset_peak_memory()
    before, began = peak_memory_gib(), time.perf_counter()
    found = select_neurons(profile)
    seconds = time.perf_counter() - began
    memory = {"peak_gib": round(peak_memory_gib(), 2), "loaded_gib": round(before, 2)}
    print(json.dumps({"seconds": round(seconds, 2), **memory, "chosen": sum(map(found.count, found))}))


def selection(size: tuple[int, int, int]) -> dict:
    """Selects in a process of its own."""
    command = [sys.executable, __file__, "--select", *map(str, size)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(zip(("languages", "layers", "neurons"), size, strict=True)) | json.loads(out.splitlines()[-1])


def main() -> None:
    """Measures both and prints a table; writes JSON when a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?")
    parser.add_argument("--models", nargs="*", default=["gemma-3-270m", "llama-1024"])
    parser.add_argument("--select", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.select:
        selection_here(*arguments.select)
        return
    speeds = [counting_speed(name) for name in arguments.models]
    for row in speeds:
        print(
            f"{row['model']:<14}counting {row['counting_tokens_per_second']:>9,.0f} tokens/s, bare body "
            f"{row['bare_tokens_per_second']:>9,.0f}: {row['counting_over_bare']:.3f}",
            flush=True,
        )
    sizes = []
    for size in SIZES:
        sizes.append(selection(size))
        row = sizes[-1]
        print(
            f"selection   {row['languages']:>4} languages x {row['layers']} x {row['neurons']:>6,} neurons"
            f"{row['seconds']:>8.2f} s  peak {row['peak_gib']:.2f} GiB",
            flush=True,
        )
    if arguments.output:
        facts = {"tokens_per_batch": 2 * BATCH * WINDOW, "threads": torch.get_num_threads()}
        write_json(arguments.output, {"counting": speeds, "selection": sizes, **facts, **provenance()})


if __name__ == "__main__":
    main()
