"""Whether the library works on this device: python benchmarks/device_check.py NTREX_FOLDER [--tokens 16384]

Trains every method in 8 and 16 bits on Icelandic sentences of `NTREX_FOLDER/is.txt` and checks what must hold on any
device: training changes the loss, detaching restores the base, a merged model equals an attached one. One line a check, OK or FAIL,
with tokens a second and peak memory; the exit status is the number of failures.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssetools import Subnetwork, finetune, load_model, profile_languages, select_neurons
from ssetools.evaluation.perplexity import score_texts
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory

METHODS = {8: ("lape", "lora", "ia3"), 16: ("lape", "ffn", "full")}
OPTIONS = {
    "batches of 32": {"batch_size": 32},
    "adamw8bit, recomputed activations": {"optimizer": "adamw8bit", "checkpoint_activations": True},
}
LANGUAGES = ("is", "yo", "en")


class Checks:
    """Runs checks, prints a line for each, and counts the failures."""

    def __init__(self):
        self.failed = 0

    def check(self, name: str, act: Callable[[], str]) -> None:
        """Runs a check, which returns what to print and raises if it fails."""
        reset_peak_memory()
        began = time.monotonic()
        try:
            outcome = f"OK   {name}: {act()}"
        except Exception as error:  # noqa: BLE001 (each check is reported)
            traceback.print_exc()
            outcome = f"FAIL {name}: {type(error).__name__} {error}"
            self.failed += 1
        print(f"{outcome} ({time.monotonic() - began:.1f} s, peak {peak_memory_gib():.2f} GiB)", flush=True)


def in_bits(bits: int, texts: dict[str, list[str]], tokens: int, folder: Path, checks: Checks) -> None:
    """Checks loading, profiling, selection and every method that a base of so many bits can train."""
    model, tokenizer = load_model("gemma-3-270m", load_in_8bit=bits == 8)
    print(f"{bits}-bit on {model.device}, {model.dtype}", flush=True)
    train, held_out = texts["is"][:-40], texts["is"][-40:]
    chosen: dict[str, Any] = {}

    def loss() -> float:
        scored = score_texts(model, tokenizer, held_out)
        return (scored.losses.sum() / scored.tokens.sum()).item()

    base = loss()

    def select() -> str:
        profile = profile_languages(model, tokenizer, texts, 4096)
        chosen["is"] = select_neurons(profile)["is"]
        return f"{profile.counts.sum().item():,} activations, {sum(map(len, chosen['is'])):,} neurons of Icelandic"

    def train_method(method: str, **options: Any) -> str:
        neurons = chosen["is"] if method == "lape" else None
        result = finetune(model, tokenizer, train, method, neurons=neurons, max_tokens=tokens, **options)
        attached = loss()
        speed = statistics.median(row["tokens_per_second"] for row in result.history)
        if method == "lape" and not options:
            result.adapter.save(folder / str(bits))
        result.adapter.detach()
        assert math.isfinite(attached), f"loss {attached} after training"
        assert attached != base, "training changed nothing"
        assert abs(loss() - base) < 1e-3, "detaching did not restore the base"
        return f"loss {base:.4f} to {attached:.4f}, {speed:,.0f} tokens/s"

    def merge() -> str:
        adapter = Subnetwork.load(folder / str(bits), model)
        attached = loss()
        adapter.merge()
        assert abs(loss() - attached) < 2e-2, f"merged {loss():.4f}, attached {attached:.4f}"
        return f"attached {attached:.4f}, merged {loss():.4f}"

    checks.check("profile and selection", select)
    for method in METHODS[bits]:
        checks.check(method, lambda method=method: train_method(method))
    for name, options in OPTIONS.items():
        checks.check(f"lape, {name}", lambda options=options: train_method("lape", **options))
    if bits == 16:
        checks.check("merge", merge)


def main() -> None:
    """Checks 8 and 16 bits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ntrex", type=Path, help="folder of <lang>.txt, one sentence a line")
    parser.add_argument("--tokens", type=int, default=16_384, help="training tokens of each method")
    arguments = parser.parse_args()
    texts = {x: (arguments.ntrex / f"{x}.txt").read_text(encoding="utf-8").split("\n") for x in LANGUAGES}
    texts = {lang: [line.strip() for line in lines if line.strip()] for lang, lines in texts.items()}
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        for bits in METHODS:
            in_bits(bits, texts, arguments.tokens, Path(folder), checks)
    print(f"{checks.failed} checks failed.", flush=True)
    sys.exit(checks.failed)


if __name__ == "__main__":
    main()
