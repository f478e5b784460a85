"""How languages differ inside the embedded model: writes book/results/inside.json for the page of that name.

Run: python -m study.look_inside [--model ...] [--runs runs]
The same text, the declaration, in 22 languages: how many tokens it takes, and how many bits the model needs for it. And for
every neuron, among how many languages its firing is spread. Two minutes on two cores; needs no hub.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ssetools.embedded_model import EMBEDDED_MODEL
from ssetools.evaluation.perplexity import score_texts
from ssetools.files import provenance, write_json
from ssetools.languages import PROFILED_LANGUAGES
from ssetools.models import load_model, model_source
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.selection import lape_entropy
from ssetools.steps import get_profile
from ssetools.text.sources import SPLITS, load_texts

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "inside.json"
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def same_text(model, tokenizer, languages) -> dict[str, dict]:
    """Measures one text in many languages.

    Returns:
        By code: `tokens` and `bytes` of the whole declaration, and `bits` that the model needs for its test articles,
        which are the same articles in each language.
    """
    found = {}
    for lang in languages:
        whole = [text for split in SPLITS for text in load_texts("udhr", lang, split)]
        score = score_texts(model, tokenizer, load_texts("udhr", lang, "test"))
        found[lang] = {
            "tokens": sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole),
            "bytes": sum(len(text.encode()) for text in whole),
            "bits": round(score.losses.sum().item() / math.log(2), 1),
        }
        print(f"{lang}: {found[lang]['tokens']:,} tokens, {found[lang]['bits']:,.0f} bits", flush=True)
    return found


def spread(profile: ActivationProfile) -> list[dict]:
    """Says, layer by layer, among how many languages the firing of its neurons is spread.

    The number is exp(LAPE): 1 when one language gets all, and the number of languages when all get the same.

    Returns:
        By layer: `quantiles`, the number at the shares of neurons in `shares` of the file.
    """
    numbers = lape_entropy(profile).exp()
    quantiles = torch.quantile(numbers, torch.tensor(_SHARES, dtype=numbers.dtype), dim=1).T
    return [{"layer": layer, "quantiles": [round(x, 3) for x in row]} for layer, row in enumerate(quantiles.tolist())]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    profile = get_profile(model, tokenizer, arguments.runs)
    facts = {"model": model_source(model), "profiled": profile.metadata["source"], "shares": _SHARES}
    texts = same_text(model, tokenizer, PROFILED_LANGUAGES)
    write_json(arguments.output, {**facts, "same_text": texts, "layers": spread(profile), **provenance()})


if __name__ == "__main__":
    main()
