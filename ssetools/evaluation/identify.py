"""Which language is a text in, and does turning up a language's neurons make the model write it?"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import wilson
from ssetools.models import device_of, evaluation_mode
from ssetools.neurons.sets import NeuronSets, amplified
from ssetools.text.sources import load_texts
from ssetools.text.windows import bos_ids

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
        raise ValueError(f"No document of {source!r} in {lang!r} has more than {characters} characters: ask for fewer.")
    codes = [code for code, _ in identify_language(pieces)]
    return {"pieces": len(pieces), "accuracy": codes.count(lang) / len(pieces)}


def amplification_effect(
    model: nn.Module,
    tokenizer,
    neurons: NeuronSets,
    lang: str,
    factors: Sequence[float] = (1, 2, 4, 8),
    prompts: Sequence[str] = NEUTRAL_PROMPTS,
    samples: int = 8,
    new_tokens: int = 30,
    seed: int = 0,
):
    """Turns a language's neurons up, lets the model go on from neutral prompts, and identifies what it writes.

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
    import pandas

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


def identified_shares(effect, lang: str):
    """Counts how many continuations of `amplification_effect` were identified as `lang`.

    Returns:
        DataFrame, one row per set of neurons and factor: `neurons`, `factor`, `share`, its 95% interval `low` and
        `high` (Wilson's, which has width where the share is 0), and `unknown`, the share with no clear language.
    """
    import pandas

    rows = []
    for (name, factor), part in effect.groupby(["neurons", "factor"], sort=False):
        share, count = (part.identified == lang).mean(), len(part)
        low, high = wilson(share, count)
        row = {"neurons": name, "factor": factor, "share": share, "low": low, "high": high}
        rows.append({**row, "unknown": (part.identified == UNKNOWN).mean()})
    return pandas.DataFrame(rows)


def sample_continuations(
    model: nn.Module, tokenizer, prompts: Sequence[str], samples: int = 8, new_tokens: int = 30, seed: int = 0
) -> list[list[str]]:
    """Lets the model go on from each prompt several times, BOS in front, all in one batch.

    The same arguments give the same texts on the same machine, and the random state of the process stays as it was.

    Returns:
        For each prompt its continuations, without the prompt.
    """
    device = device_of(model)
    opening = bos_ids(tokenizer)
    encoded = [opening + tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # On the left, so that every prompt ends where the continuation begins.
    ids = torch.tensor([[padding] * (longest - len(ids)) + ids for ids in encoded], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded], device=device)
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_return_sequences=samples,
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            use_cache=True,
            pad_token_id=padding,
        )
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)]
    return [texts[i * samples : (i + 1) * samples] for i in range(len(prompts))]


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def can_identify(lang: str) -> bool:
    """Says whether the identifier knows a language."""
    return lang in _identifier().labels


def _check_known(lang: str) -> None:
    known = _identifier().labels
    if not can_identify(lang):
        raise InvalidInput(f"The language identifier does not know {lang!r}; it knows {' '.join(known)}.")


def identified_most(effect, neurons: str, most: int = 4):
    """Counts what the texts of `amplification_effect` were identified as, the commonest first.

    Args:
        effect: What `amplification_effect` returned.
        neurons: Which neurons were turned up: the language's code, or "random".
        most: How many codes to name at each factor.

    Returns:
        DataFrame, a row per factor: a dict of codes and counts.
    """
    mine = effect[effect.neurons == neurons].groupby("factor").identified
    return mine.agg(lambda codes: dict(codes.value_counts().head(most))).to_frame("identified as")
