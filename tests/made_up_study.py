"""A tiny model and a folder of text in made-up languages, and the steps of a study on them."""

from __future__ import annotations

from pathlib import Path

import families

from ssetools import load_model
from ssetools.steps import get_neurons, get_run
from ssetools.text.sources import TextPlan

LANGS = ["yo", "is", "en"]
PROFILE = {"languages": LANGS, "tokens_per_language": 600}
SETTINGS = {"window": 16, "batch_size": 2, "learning_rate": 0.01, "max_tokens": 320, "scale": 1.0}


def words(lang, count, shift=0):
    """Each made-up language draws on words of its own, so that neurons can tell them apart."""
    start = 3 + 30 * LANGS.index(lang)
    return [" ".join(f"w{start + (i * i + 3 * k + shift) % 29}" for k in range(12)) for i in range(count)]


def made(tokenizer):
    """Writes the model and the text into the working folder; returns the loaded model, its tokenizer and a plan."""
    families.tiny_model("llama").save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    for lang in LANGS:
        for part, (split, count) in enumerate((("train", 80), ("validation", 8), ("test", 12))):
            path = Path("text") / lang / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n\n".join(words(lang, count, shift=part)))
    return *load_model("tiny", load_in_8bit=False), TextPlan("text", {"stories": "text"}, ("stories",), "made up")


def trained(study):
    """Selects neurons and trains one run; returns both."""
    model, tokenizer, plan = study
    neurons = get_neurons(model, tokenizer, source="text", **PROFILE)
    folder = get_run(model, tokenizer, "yo", neurons, plan, **SETTINGS)
    return neurons, folder
