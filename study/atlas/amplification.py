"""Does amplifying a language's neurons make the model write the language, after prompts that ask for none?"""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from ssetools.evaluation.intervals import wilson
from ssetools.evaluation.perplexity import generate_ids, prompt_ids
from ssetools.neurons.sets import NeuronSets, amplified
from ssetools.text.sources import load_texts

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedTokenizerBase

LANGUAGES = ("yo", "is", "ka")
PROMPTS = ("1.", "-", "2 + 2 =", "The")
"""Three openings that ask for no language, and one that asks for English."""

UNKNOWN = "und"
"""Code of a text that the identifier is not sure of (ISO 639: undetermined)."""

_CHARACTERS = 100


def amplification_effect(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    neurons: NeuronSets,
    lang: str,
    factors: Sequence[float] = (1, 2, 4, 8),
    prompts: Sequence[str] = PROMPTS,
    samples: int = 8,
    new_tokens: int = 30,
    seed: int = 0,
) -> dict:
    """Amplifies a language's neurons, lets the model continue prompts, and identifies the language of what it writes.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        neurons: Its neuron sets.
        lang: Language whose neurons are amplified. The control is as many random neurons of the same layers.
        factors: What the neurons' outputs are multiplied by; 1 is the model as it is.
        prompts: Openings.
        samples: Continuations of each prompt.
        new_tokens: Their length in tokens.
        seed: Seed of the sampling and of the control.

    Returns:
        "pieces" and "accuracy" of the identifier on known text, and "rows": dicts of "neurons" (`lang` or "random"),
        "factor", "share" of the continuations that were identified as the language, its 95% interval "low" and "high"
        (Wilson's, which has width where the share is 0), and "identified", counts by code.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    rows = []
    for name, chosen in ((lang, neurons[lang]), ("random", neurons.random_like(lang, seed))):
        for factor in factors:
            with amplified(model, chosen, factor):
                drawn = generate_ids(model, tokenizer, ids, new_tokens, samples, seed, top_k=50)
            texts = [" ".join(text.split()) for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
            identified = Counter(identify_languages(texts))
            share = identified[lang] / len(texts)
            low, high = wilson(share, len(texts))
            row = {"neurons": name, "factor": factor, "share": share, "low": round(low, 4), "high": round(high, 4)}
            rows.append({**row, "identified": dict(identified.most_common())})
    return {**identification_accuracy(lang), "rows": rows}


def identify_languages(texts: Sequence[str], min_probability: float = 0.5) -> list[str]:
    """Identifies the language of each text, among the 139 that py3langid's own model knows.

    An answer less probable than `min_probability` becomes "und": numbers, single letters and babble have no language.
    """
    answers = [_identifier().classify(text) for text in texts]
    return [code if p >= min_probability else UNKNOWN for code, p in answers]


def identification_accuracy(lang: str) -> dict:
    """Measures the identifier on the declaration's test articles, cut into pieces of about 100 characters.

    Pieces end at a space where the script has spaces, and the last, shorter piece of an article is dropped.
    """
    documents = [" ".join(text.split()) for text in load_texts("udhr", lang, "test")]
    pieces = [x for text in documents for x in textwrap.wrap(text, _CHARACTERS, break_on_hyphens=False)[:-1]]
    return {"pieces": len(pieces), "accuracy": identify_languages(pieces).count(lang) / len(pieces)}


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
