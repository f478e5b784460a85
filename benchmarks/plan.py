"""The plan against measured peaks, and plans of larger models: python benchmarks/plan.py [folder]

Every measured run is one of two steps in a process of its own (peak_of_a_run.py); its prediction comes from the
configuration alone. The larger models are planned with subnetworks of the size that LAPE at 5% has in them: that of
Maltese, and the largest of twelve languages. With a folder, plan.json is written there, and beside it the tables of the
book as plan-*.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from ssetools.files import atomic_write, provenance, write_json
from ssetools.memory_plan import KNOWN_MODELS, build_without_data, config_of, plan_memory
from ssetools.models import body_of

GEMMA = "gemma-3-270m"
# Its FFN dominates; what small models hide, such as what an 8-bit layer keeps, shows here.
LLAMA = {"model_type": "llama", "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 4096}
LLAMA |= {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}
RECOMPUTED = {"checkpoint_activations": True}
MEASURED = [
    # model, 8-bit?, method, settings; dtype is what the model's own checkpoint has in 16 bits, or float32
    (GEMMA, True, "lape", {}, "bfloat16"),
    (GEMMA, False, "lape", {}, "bfloat16"),
    (GEMMA, True, "lape", RECOMPUTED, "bfloat16"),
    (GEMMA, False, "ffn", {}, "bfloat16"),
    ("llama", False, "lape", {}, "float32"),
    ("llama", True, "lape", {}, "float32"),
    ("llama", True, "lape", RECOMPUTED, "float32"),
]
NEURONS = 400
LIMIT_GB = 15  # what a card sold with 16 GB can give to one run
LARGER = [
    # model, neurons, bits; Aya has Llama's shape, and no set of its own for these languages
    ("meta-llama/Llama-3.1-8B", 3015, 8),
    ("meta-llama/Llama-3.1-8B", 6020, 8),
    ("meta-llama/Llama-3.1-8B", 3015, 16),
    ("mistralai/Mistral-Nemo-Base-2407", 3611, 8),
    ("mistralai/Mistral-Nemo-Base-2407", 8239, 8),
    ("CohereLabs/aya-expanse-8b", 3015, 8),
    ("CohereLabs/aya-expanse-8b", 6020, 8),
]
SHAPE = {"batch_size": 2, "window": 512}


def measured(model: str, in_8bit: bool, method: str, settings: dict, dtype: str) -> dict:
    """Measures one run in a process of its own and predicts it; returns both in GiB."""
    neurons = NEURONS if method == "lape" else None
    order = {"model": LLAMA if model == "llama" else model, "neurons": neurons, "method": method, "dtype": dtype}
    order |= {"load_in_8bit": in_8bit, "settings": settings}
    script = Path(__file__).with_name("peak_of_a_run.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(order)],
        # Without this glibc keeps much of what is freed, and the peak says little about what is needed.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = json.loads(done.stdout.splitlines()[-1])["peak"]
    KNOWN_MODELS["llama"] = LLAMA
    plan = plan_memory(model, neurons, method, load_in_8bit=in_8bit, dtype=dtype, device="cpu", **settings)
    row = {"model": model, "bits": 8 if in_8bit else 16 if dtype == "bfloat16" else 32, "method": method}
    row |= {"recomputed": settings.get("checkpoint_activations", False), "predicted_gib": plan.peak / 2**30}
    return row | {"measured_gib": peak / 2**30, "ratio": plan.peak / peak}


def operations_per_token(model: str, trained: int, recomputed: bool) -> int:
    """Returns the floating-point operations for a token of training a subnetwork, without attention's own.

    They are two for each weight in a product: forward, and again for the gradient of its input; for a trained one also
    for its own gradient.
    """
    base = build_without_data(config_of(model), torch.bfloat16, False, "cuda")
    products = sum(p.numel() for p in body_of(base).parameters() if p.ndim == 2)
    products -= base.get_input_embeddings().weight.numel()  # looked up, not multiplied
    head = base.get_output_embeddings().weight.numel()
    return 2 * ((2 + recomputed) * products + 2 * head) + (6 + 2 * recomputed) * trained


def planned(model: str, neurons: int, bits: int, recomputed: bool) -> dict:
    """Plans a run of 2 windows of 512 tokens on a GPU; sizes in GB of 10^9 bytes."""
    options = {"load_in_8bit": bits == 8, "device": "cuda", "checkpoint_activations": recomputed}
    plan = plan_memory(model, neurons, **options, **SHAPE)
    row = {"model": model, "neurons": neurons, "bits": bits, "share_trained": plan.num_trained / plan.num_weights}
    row |= {"recomputed": recomputed, **SHAPE}
    row["operations_per_token"] = operations_per_token(model, plan.num_trained, recomputed)
    row |= {f"{part}_gb": getattr(plan, part) / 1e9 for part in ("weights", "trained", "optimizer", "step", "peak")}
    return row | {"fits": plan.peak / 1e9 <= LIMIT_GB}


def tables(results: dict) -> dict[str, str]:
    """Returns the two tables of the book in Markdown, by name."""
    rows = ["| model | base | method | predicted | measured | predicted / measured |", "|---|---|---|---|---|---|"]
    for row in results["measured"]:
        base = f"{row['bits']}-bit" + (", activations recomputed" if row["recomputed"] else "")
        sizes = f"{row['predicted_gib']:.2f} GiB | {row['measured_gib']:.2f} GiB | {row['ratio']:.2f}"
        rows.append(f"| {row['model']} | {base} | {row['method']} | {sizes} |")
    larger = ["| model | neurons | weights | deltas, state | peak, recomputed | peak, kept | GFLOP a token |"]
    larger.append("|---|---|---|---|---|---|---|")
    for again, kept in zip(results["planned"][::2], results["planned"][1::2], strict=True):
        cells = [f"{again['model'].split('/')[-1]}, {again['bits']}-bit"]
        cells += [f"{again['neurons']:,} ({100 * again['share_trained']:.2f}%)", f"{again['weights_gb']:.1f} GB"]
        cells += [f"{again['trained_gb'] + again['optimizer_gb']:.1f} GB"]
        peaks = [(f"{row['peak_gb']:.1f} GB", row["fits"]) for row in (again, kept)]
        cells += [f"**{peak}**" if fits else peak for peak, fits in peaks]
        work = [f"{row['operations_per_token'] / 1e9:.0f}" for row in (again, kept)]
        larger.append(f"| {' | '.join(cells)} | {' or '.join(work)} |")
    return {"plan-measured": "\n".join(rows) + "\n", "plan-models": "\n".join(larger) + "\n"}


def main() -> None:
    """Plans, measures, prints both tables, and writes them when a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    results = {"limit_gb": LIMIT_GB}
    results["planned"] = [planned(*model, recomputed) for model in LARGER for recomputed in (True, False)]
    results["measured"] = [measured(*order) for order in MEASURED]
    for name, table in tables(results).items():
        print(table)
        if arguments.folder:
            with atomic_write(arguments.folder / f"{name}.md") as scratch:
                scratch.write_text(table, encoding="utf-8")
    if arguments.folder:
        write_json(arguments.folder / "plan.json", {**results, **provenance()})


if __name__ == "__main__":
    main()
