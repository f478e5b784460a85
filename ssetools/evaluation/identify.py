"""Which language a text is in, and whether amplifying a language's neurons makes the model write that language."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pandas
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import wilson
from ssetools.evaluation.perplexity import generate_ids, prompt_ids
from ssetools.neurons.sets import NeuronSets, amplified
from ssetools.text.sources import load_texts

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedTokenizerBase

NEUTRAL_PROMPTS = ("1.", "-", "2 + 2 =", "The")
"""Openings that ask for no language, and one that asks for English."""

UNKNOWN = "und"
"""Code of a text that the identifier is not sure of (ISO 639: undetermined)."""


def identify_language(texts: Sequence[str], min_probability: float = 0.5) -> list[tuple[str, float]]:
    """Identifies the language of each text, among the 139 that py3langid's own model knows. Nothing is downloaded.

    Args:
        texts: Texts; under some 50 characters the answer is a guess.
        min_probability: An answer less probable than this becomes "und": numbers, single letters and babble have
            no language.

    Returns:
        `(code, probability)` for each text. The probability is the model's, over all its languages.
    """
    answers = [_identifier().classify(text) for text in texts]
    return [(code if p >= min_probability else UNKNOWN, round(p, 4)) for code, p in answers]


def identification_accuracy(lang: str, source: str = "udhr", split: str = "test", characters: int = 100) -> dict:
    """Measures the identifier on text whose language is known, cut into short pieces.

    Args:
        lang: Language code.
        source: Text, as in `load_texts`.
        split: Its split.
        characters: Length of a piece. Pieces end at a space where the script has spaces, and the last, shorter piece of
            a document is dropped.

    Returns:
        `pieces` and `accuracy`, the share identified as `lang`.

    Raises:
        ValueError: If the identifier does not know the language, or no document is longer than one piece.
    """
    _check_known(lang)
    documents = [" ".join(text.split()) for text in load_texts(source, lang, split)]
    pieces = [x for text in documents for x in textwrap.wrap(text, characters, break_on_hyphens=False)[:-1]]
    if not pieces:
        raise InvalidInput(
            f"No document of {source!r} in {lang!r} has more than {characters} characters: ask for fewer."
        )
    codes = [code for code, _ in identify_language(pieces)]
    return {"pieces": len(pieces), "accuracy": codes.count(lang) / len(pieces)}


def amplification_effect(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    neurons: NeuronSets,
    lang: str,
    factors: Sequence[float] = (1, 2, 4, 8),
    prompts: Sequence[str] = NEUTRAL_PROMPTS,
    samples: int = 8,
    new_tokens: int = 30,
    seed: int = 0,
) -> pandas.DataFrame:
    """Amplifies a language's neurons, lets the model continue neutral prompts, and identifies what it writes.

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
        DataFrame, one row a continuation: `neurons` (`lang` or "random"), `factor`, `prompt`, `text` (without the
        prompt), `identified` and `probability`.

    Raises:
        ValueError: If the identifier does not know the language, or the neurons do not fit the model.
    """
    _check_known(lang)
    rows = []
    for name, chosen in ((lang, neurons[lang]), ("random", neurons.random_like(lang, seed))):
        for factor in factors:
            with amplified(model, chosen, factor):
                written = sample_continuations(model, tokenizer, prompts, samples, new_tokens, seed)
            for prompt, texts in zip(prompts, written, strict=True):
                about = {"neurons": name, "factor": factor, "prompt": prompt}
                for text, (code, probability) in zip(texts, identify_language(texts), strict=True):
                    rows.append({**about, "text": text, "identified": code, "probability": probability})
    return pandas.DataFrame(rows)


def identified_shares(effect: pandas.DataFrame, lang: str) -> pandas.DataFrame:
    """Counts how many continuations were identified as a language.

    Args:
        effect: From `amplification_effect`.
        lang: The language.

    Returns:
        DataFrame, one row per set of neurons and factor: `neurons`, `factor`, `share`, its 95% interval `low` and
        `high` (Wilson's, which has width where the share is 0), and `unknown`, the share with no clear language.
    """
    rows = []
    for key, part in effect.groupby(["neurons", "factor"], sort=False):
        codes = list(part["identified"])
        share, unknown = (codes.count(code) / len(codes) for code in (lang, UNKNOWN))
        rows.append([*cast(tuple, key), share, *wilson(share, len(codes)), unknown])
    return pandas.DataFrame(rows, columns=["neurons", "factor", "share", "low", "high", "unknown"])


def sample_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int = 8,
    new_tokens: int = 30,
    seed: int = 0,
) -> list[list[str]]:
    """Lets the model continue each prompt several times, BOS in front, all in one batch.

    The same arguments give the same texts on the same machine, and the random state of the process stays as it was.

    Returns:
        For each prompt its continuations, without the prompt.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    drawn = generate_ids(model, tokenizer, ids, new_tokens, samples, seed, top_k=50)
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
    return [texts[i * samples : (i + 1) * samples] for i in range(len(prompts))]


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def can_identify(lang: str) -> bool:
    """Says whether the identifier knows a language."""
    return lang in _identifier().labels


def _check_known(lang: str) -> None:
    if not can_identify(lang):
        raise InvalidInput(
            f"The language identifier does not know {lang!r}; it knows {' '.join(_identifier().labels)}."
        )


def identified_most(effect: pandas.DataFrame, neurons: str, most: int = 4) -> pandas.DataFrame:
    """Counts what the continuations were identified as, the commonest language first.

    Args:
        effect: From `amplification_effect`.
        neurons: Which neurons were amplified: the language's code, or "random".
        most: How many codes to name at each factor.

    Returns:
        DataFrame, a row per factor: a dict of codes and counts.
    """
    identified = effect[effect.neurons == neurons].groupby("factor").identified
    return identified.agg(lambda codes: dict(codes.value_counts().head(most))).to_frame("identified as")
