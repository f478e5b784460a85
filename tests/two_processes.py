"""What each of several processes runs in test_processes.py: profile and fine-tune a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import families
import torch

from ssetools import finetune, processes, profile_languages

TEXTS = {
    lang: [" ".join(f"w{start + (7 * i + k * k) % 40}" for k in range(11)) for i in range(60)]
    for lang, start in (("yo", 3), ("en", 50))
}


def work(folder: Path, batch_size: int, max_tokens: int = 640) -> dict:
    """Returns counts, losses and trained numbers; the same work with half the batch in two processes."""
    torch.set_num_threads(1)
    model, tokenizer = families.tiny_model("llama"), families.word_tokenizer()
    profile = profile_languages(model, tokenizer, TEXTS, 400, window=16, path=folder / "profile.safetensors")
    options = {"window": 16, "batch_size": batch_size, "learning_rate": 0.01, "max_tokens": max_tokens}
    options |= {"validate_every": 5, "checkpoint_every": 5, "validation_texts": TEXTS["yo"][:5]}
    result = finetune(
        model, tokenizer, TEXTS["yo"], "lape", families.some_neurons(model), run_dir=folder / "run", **options
    )
    return {
        "processes": processes.count(),
        "counts": profile.counts,
        "tokens": profile.tokens,
        "losses": torch.tensor([row["loss"] for row in result.history], dtype=torch.float64),
        "validation": [row["validation_loss"] for row in result.history if "validation_loss" in row],
        "numbers": [p.detach() for p in result.adapter.parameters()],
    }


if __name__ == "__main__":
    found = work(Path(sys.argv[1]), int(sys.argv[2]))
    if processes.is_main():
        torch.save(found, Path(sys.argv[1]) / "found.pt")
