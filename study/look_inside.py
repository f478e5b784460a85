"""Measures how languages differ inside the embedded model: writes book/results/inside.json.

Run: python -m study.look_inside [--model ...] [--runs runs]
Measures, for the declaration in 22 languages, the number of tokens and the bits that the model needs to predict it, and for
every neuron the effective number of languages for which it fires. Takes two minutes on two cores, without network.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ssetools.evaluation.perplexity import score_texts
from ssetools.files import provenance, write_json
from ssetools.languages import PROFILED_LANGUAGES
from ssetools.models import load_model, model_source
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.selection import lape_entropy
from ssetools.steps import get_profile
from ssetools.text.embedded import EMBEDDED_MODEL
from ssetools.text.sources import SPLITS, load_texts

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "inside.json"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def measure_same_text(model, tokenizer, languages: Sequence[str]) -> dict[str, dict]:
    """Measures the declaration in many languages.

    Returns:
        By language: `tokens` and `bytes` of the whole declaration, and `bits`, the negative log2 likelihood of its test
        articles, which are the same in every language.
    """
    measures = {}
    for lang in languages:
        whole = [text for split in SPLITS for text in load_texts("udhr", lang, split)]
        score = score_texts(model, tokenizer, load_texts("udhr", lang, "test"))
        measures[lang] = {
            "tokens": sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole),
            "bytes": sum(len(text.encode()) for text in whole),
            "bits": round(score.losses.sum().item() / math.log(2), 1),
        }
        print(f"{lang}: {measures[lang]['tokens']:,} tokens, {measures[lang]['bits']:,.0f} bits", flush=True)
    return measures


def effective_languages(profile: ActivationProfile) -> list[dict]:
    """Computes, for each layer, the effective number of languages for which its neurons fire.

    It is the exponential of a neuron's LAPE entropy: 1 if the neuron fires for one language only, and the number of
    languages if it fires equally often for all.

    Returns:
        A dict per layer: `layer`, and `quantiles` over its neurons, at the shares given by `shares` in the file.
    """
    effective = lape_entropy(profile).exp()
    quantiles = torch.quantile(effective, torch.tensor(_QUANTILES, dtype=effective.dtype), dim=1).T
    return [{"layer": layer, "quantiles": [round(x, 3) for x in row]} for layer, row in enumerate(quantiles.tolist())]


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--runs", default="runs", help="folder of the profile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    profile = get_profile(model, tokenizer, arguments.runs)
    facts = {"model": model_source(model), "profiled": profile.metadata["source"], "shares": _QUANTILES}
    texts = measure_same_text(model, tokenizer, PROFILED_LANGUAGES)
    write_json(arguments.output, {**facts, "same_text": texts, "layers": effective_languages(profile), **provenance()})


if __name__ == "__main__":
    main()
