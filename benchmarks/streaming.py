"""Memory against the size of the text, in one run: python benchmarks/streaming.py [results.json] [--megabytes 500]

Text of a made-up language is generated in the hub's layout (parquet files), streamed and packed into the cache: a quarter
of it, all of it, and all of it by a process that is killed with -9 again and again; then a tiny model trains on it. Peak
memory of each is what lies above the imports. Three things must hold: memory does not grow with the text, the tokens are
those of an uninterrupted run, and no document is missing. Options: --megabytes, --kills, --folder (scratch space, four
times the text).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ssetools import finetune, stream_texts
from ssetools.files import provenance, write_json
from ssetools.languages import get_language
from ssetools.text.embedded import embedded_folder
from ssetools.text.hub import HubText
from ssetools.text.windows import pack_stream
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory

WINDOW, FILE_MB, WORDS_PER_DOCUMENT, TRAINED = 256, 50, 400, 16_384
_TINY = {"vocab_size": 262_144, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def generate(folder: Path, megabytes: float) -> dict:
    """Writes parquet files as GlotCC's repository has them; no two documents are the same, so nothing is left out."""
    random.seed(0)
    syllables = [a + b for a in "bdfgjklmnprstwy" for b in ("a", "e", "ẹ", "i", "o", "ọ", "u")]
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(20_000)]
    target = folder / "v1.0" / "yor-Latn"
    target.mkdir(parents=True)
    written = documents = 0
    for number in range(max(1, round(megabytes / FILE_MB))):
        texts, size = [], 0
        while size < min(FILE_MB, megabytes) * 2**20:
            texts.append(" ".join(random.choices(words, k=WORDS_PER_DOCUMENT)))
            size += len(texts[-1].encode())
        table = pyarrow.table({"content": texts})
        pyarrow.parquet.write_table(table, target / f"yor-Latn_{number}.parquet", row_group_size=1000)
        written, documents = written + size, documents + len(texts)
    return {"megabytes": written / 2**20, "documents": documents}


def pack(source: str, home: Path, kill_after: float | None = None) -> dict:
    """Packs in a process of its own, which is killed after so many seconds if it is not through by then."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--source", source, "--home", str(home)], stdout=subprocess.PIPE, text=True
    )
    imported = json.loads(process.stdout.readline())["imported_mib"]
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
        process.wait()
        return {"killed": True, "mib_above_imports": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024 - imported}
    if process.returncode:
        raise RuntimeError(f"Packing failed with status {process.returncode}.")
    return {"killed": False, **json.loads(process.stdout.read().splitlines()[-1])}


def tokenizer_then_home(home: Path):
    """Loads the embedded model's tokenizer from the user's cache, and puts what comes after it into another."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    os.environ["SSETOOLS_HOME"] = str(home)
    return tokenizer


def pack_here(source: str, home: Path) -> None:
    """Packs in this process; prints JSON before and after."""
    tokenizer = tokenizer_then_home(home)
    reset_peak_memory()
    before, began = 1024 * peak_memory_gib(), time.monotonic()
    print(json.dumps({"imported_mib": before}), flush=True)
    windows = pack_stream(tokenizer, stream_texts(source, "yo"), WINDOW, 10**9)
    found = {"tokens": len(windows.tokens), "digest": windows.digest(), "seconds": time.monotonic() - began}
    print(json.dumps({**found, "mib_above_imports": 1024 * peak_memory_gib() - before}), flush=True)


def train(source: str, home: Path) -> dict:
    """Trains a tiny model for a few steps on what is packed; returns its peak memory."""
    tokenizer = tokenizer_then_home(home)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**_TINY)).requires_grad_(False)
    reset_peak_memory()
    before = 1024 * peak_memory_gib()
    stream = stream_texts(source, "yo")
    result = finetune(model, tokenizer, stream, neurons=[torch.arange(8)] * 2, window=WINDOW, max_tokens=TRAINED)
    return {"tokens": result.tokens, "mib_above_imports": 1024 * result.peak_memory_gib - before}


def pieces(source: str, home: Path, kills: int, whole_seconds: float) -> list[dict]:
    """Packs with `kills` interruptions spread over the time that an uninterrupted packing took."""
    found = []
    for _ in range(kills):
        found.append(pack(source, home, kill_after=whole_seconds / (kills + 1)))
        if not found[-1]["killed"]:
            return found
    return [*found, pack(source, home)]


def main() -> None:
    """Runs everything, prints a line for each piece, and writes JSON when a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?")
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None, help="scratch space (default: the system's)")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.source:
        pack_here(arguments.source, arguments.home)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        scratch = Path(name)
        part, whole = (generate(scratch / n, arguments.megabytes * share) for n, share in (("part", 0.25), ("text", 1)))
        source = f"glotcc:{scratch / 'text'}"
        quarter = {**part, **pack(f"glotcc:{scratch / 'part'}", scratch / "home")}
        plain = {**whole, **pack(source, scratch / "home")}
        killed = pieces(source, scratch / "again", arguments.kills, plain["seconds"])
        about = json.loads(next((scratch / "again" / "tokens").glob("*/about.json")).read_text())
        held_out = len(HubText("glotcc", str(scratch / "text"), get_language("yo")).held_out())
        training = train(source, scratch / "home")
    for label, row in (("a quarter", quarter), ("all text", plain), *(("a piece", row) for row in killed)):
        print(
            f"{label:<10} {row['mib_above_imports']:8.0f} MiB above imports" + ("  (killed)" if row["killed"] else "")
        )
    print(f"training   {training['mib_above_imports']:8.0f} MiB above imports, {training['tokens']:,} tokens")
    checks = {
        "same_tokens_after_kills": killed[-1]["digest"] == plain["digest"],
        "documents_missing": whole["documents"] - held_out - about["documents"],
        "memory_of_all_over_a_quarter": round(plain["mib_above_imports"] / quarter["mib_above_imports"], 3),
    }
    print(checks)
    if arguments.output:
        rows = {"quarter": quarter, "all": plain, "killed": killed, "training": training, "held_out": held_out}
        write_json(arguments.output, {**rows, **checks, **provenance()})


if __name__ == "__main__":
    main()
