"""A GGUF adapter in llama.cpp beside the same adapter here: python benchmarks/gguf_adapter.py MODULES [results.json]

MODULES is the node_modules folder in which `npm install node-llama-cpp@3.21.1` put llama.cpp. The embedded model's own
GGUF file is the base there, and its dequantised weights here; the adapter's deltas are random, and large enough to be
seen. Both sides score the same tokens without and with it. llama.cpp rounds activations to 8 bits where weights are
quantised, so even the bases differ a little; what counts is whether the adapter moves both alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from ssetools import Subnetwork, find_ffn_blocks, load_model
from ssetools.files import provenance, write_json
from ssetools.loss import token_losses
from ssetools.models import evaluation_mode
from ssetools.text.embedded import write_gemma_gguf

TEXT = "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."
NEURONS, SIZE = 24, 0.02  # in each layer; standard deviation of the deltas


def main() -> None:
    """Scores on both sides, prints how far they agree, and writes JSON when a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", type=Path)
    parser.add_argument("output", nargs="?")
    arguments = parser.parse_args()
    model, tokenizer = load_model(load_in_8bit=False, dtype="float32")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    subnet = Subnetwork.attach(model, [torch.arange(NEURONS) * 7 for _ in find_ffn_blocks(model)])
    torch.manual_seed(0)
    for parameter in subnet.parameters():
        parameter.data = SIZE * torch.randn_like(parameter)
    with evaluation_mode(model):
        adapted = -token_losses(model, ids)[0]
        with subnet.switched_off():
            base = -token_losses(model, ids)[0]
    with tempfile.TemporaryDirectory() as folder:
        order = {"tokens": ids[0].tolist(), "modules": str(arguments.modules.resolve())}
        order["model"] = str(write_gemma_gguf(Path(folder) / "base.gguf"))
        order["adapter"] = str(subnet.to_gguf_lora(Path(folder) / "adapter.gguf"))
        write_json(Path(folder) / "order.json", order)
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(Path(folder) / "order.json")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs = {name: torch.tensor(row) for name, row in json.loads(done.stdout.splitlines()[-1]).items()}
    effect, their_effect = adapted - base, theirs["adapted"] - theirs["base"]
    found = {
        "tokens": len(base),
        "effect_nats": effect.abs().mean().item(),
        "bases_differ_nats": (theirs["base"] - base).abs().mean().item(),
        "effects_differ_nats": (their_effect - effect).abs().mean().item(),
        "correlation_of_effects": torch.corrcoef(torch.stack([effect, their_effect]))[0, 1].item(),
    }
    print(json.dumps(found, indent=1))
    if arguments.output:
        llama_cpp = json.loads((arguments.modules / "node-llama-cpp" / "package.json").read_text(encoding="utf-8"))
        write_json(arguments.output, {**found, "node-llama-cpp": llama_cpp["version"], **provenance()})


if __name__ == "__main__":
    main()
