"""What each of several processes runs in test_processes.py: profile and fine-tune a tiny model, whole or sharded."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import families
import torch

from ssetools import finetune, processes, profile_languages
from ssetools.models import body_of, shard_model

TEXTS = {
    lang: [" ".join(f"w{start + (7 * i + k * k) % 40}" for k in range(11)) for i in range(60)]
    for lang, start in (("yo", 3), ("en", 50))
}


def work(
    folder: Path,
    batch_size: int,
    max_tokens: int = 640,
    family: str = "llama",
    dtype: str = "float32",
    sharded: bool = False,
    method: str = "lape",
    recompute: bool = False,
) -> dict:
    """Returns counts, losses and trained numbers; the same work with half the batch in two processes."""
    torch.set_num_threads(1)
    start = bytes_of_tensors() if sharded else 0
    model, tokenizer = families.tiny_model(family, dtype=getattr(torch, dtype)), families.word_tokenizer()
    weights = sum(p.nbytes for p in model.parameters())
    if sharded:
        shard_model(model)
    held = [bytes_of_tensors() - start] if sharded else []
    profile = profile_languages(model, tokenizer, TEXTS, 400, window=16, path=folder / "profile.safetensors")
    options = {"window": 16, "batch_size": batch_size, "learning_rate": 0.01, "max_tokens": max_tokens}
    options |= {"validate_every": 5, "checkpoint_every": 5, "validation_texts": TEXTS["yo"][:7]}
    options |= {"checkpoint_activations": recompute}
    result = finetune(
        model, tokenizer, TEXTS["yo"], method, families.some_neurons(model), run_dir=folder / "run", **options
    )
    if sharded:
        body_of(model).reshard()  # a pass without gradients leaves the embeddings gathered
    found = {
        "processes": processes.count(),
        "weights": weights,
        "counts": profile.counts,
        "tokens": profile.tokens,
        "losses": torch.tensor([row["loss"] for row in result.history], dtype=torch.float64),
        "validation": [row["validation_loss"] for row in result.history if "validation_loss" in row],
        "numbers": [p.detach() for p in result.adapter.parameters()],
    }
    result.adapter.detach()
    del result, profile
    if sharded:
        ours = sum(t.nbytes for t in (found["counts"], found["tokens"], found["losses"], *found["numbers"]))
        held.append(bytes_of_tensors() - start - ours)
    return {**found, "held": held}


def bytes_of_tensors() -> int:
    """Bytes of all tensors that are alive in this process."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


if __name__ == "__main__":
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {name: work(folder / name, 2, **options) for name, options in jobs.items()}
    if processes.is_main():
        torch.save(found, folder / "found.pt")
