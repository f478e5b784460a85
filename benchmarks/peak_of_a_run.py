"""Measures one short training run in a process of its own: python benchmarks/peak_of_a_run.py '{"model": ..., ...}'

Prints JSON: bytes of resident memory above what the imports take, after loading and at the peak of training.
"""

import contextlib
import gc
import json
import sys
import tempfile

import torch
import transformers

from ssetools import load_model
from ssetools.memory_plan import spread_neurons
from ssetools.models import evaluation_mode
from ssetools.text.windows import PackedWindows
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory
from ssetools.training.loop import Run, TrainingSettings
from ssetools.training.methods import attach_method


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def train(order: dict) -> dict:
    """Loads, and trains two steps; returns what it took.

    With the first step the optimiser's state appears, and with its validation the best numbers so far.
    """
    settings = TrainingSettings(learning_rate=1e-4, validate_every=1, **order["settings"])
    with tempfile.TemporaryDirectory() as folder:
        name = order["model"]
        if isinstance(name, dict):
            config = transformers.AutoConfig.for_model(**name)
            transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
            _word_tokenizer().save_pretrained(folder)
            gc.collect()
            name = folder
        before = resident()
        reset_peak_memory()
        model, _ = load_model(name, load_in_8bit=order["load_in_8bit"], dtype=order["dtype"])
        loading = peak_memory_gib() * 2**30 - before
        adapter = attach_method(model, order["method"], spread_neurons(model, order["neurons"]))
        ids = torch.arange(2 * settings.batch_size * settings.window) % 90
        windows = PackedWindows(ids.numpy().astype("uint32"), [], settings.window)
        run = Run(adapter, windows, [windows[0]], 2, settings, None, order["method"])
        reset_peak_memory()
        with evaluation_mode(model):
            run.train()
        return {"loading": loading, "peak": peak_memory_gib() * 2**30 - before}


def main(order: dict) -> None:
    """Trains something tiny first, so that all code is there and what is counted is data, and then what is asked."""
    tiny = {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    train({**order, "model": tiny, "neurons": 8, "settings": {**order["settings"], "batch_size": 1, "window": 8}})
    gc.collect()
    with contextlib.redirect_stdout(sys.stderr):
        found = train(order)
    print(json.dumps(found))


def _word_tokenizer():
    from tokenizers import Tokenizer, models

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")), unk_token="<unk>"
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
