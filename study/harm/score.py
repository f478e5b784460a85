"""Scores sentences one at a time after BOS, and the drift from the base, for a model with or without its delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssetools.evaluation.drift import drift
from ssetools.languages import CONTRAST_LANGUAGES, TARGET_LANGUAGES
from ssetools.loss import token_losses
from ssetools.models import device_of, evaluation_mode
from ssetools.text.windows import bos_ids
from study.harm.text import RealText

_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
_LONGEST = 256  # tokens of a sentence that are scored

Scores = dict[str, dict[str, list[float]]]
"""Summed negative log-likelihood of each sentence, in nats, by genre and language."""


@dataclass(frozen=True)
class Sizes:
    """How many sentences are scored, for each genre.

    Attributes:
        target: Of the language that is trained.
        english: Of English.
        served: Of each other well-served language.
        neighbours: Of each other under-served language.
    """

    target: int
    english: int
    served: int
    neighbours: int

    def of(self, lang: str, target: str) -> int:
        """Returns the number for one language."""
        if lang == target:
            return self.target
        if lang == "en":
            return self.english
        return self.served if lang in CONTRAST_LANGUAGES else self.neighbours


VALIDATION = Sizes(target=25, english=20, served=5, neighbours=4)
TEST = Sizes(target=40, english=15, served=4, neighbours=3)


def scored_sentences(text: RealText, target: str, split: str) -> dict[str, dict[str, list[str]]]:
    """Returns the sentences to score by genre and language: all languages on the unseen genres, the target on its own.

    Args:
        text: The real text.
        target: Language that is trained.
        split: "validation" (SIB-200 and held-out blocks) or "test" (NTREX besides).
    """
    sizes = VALIDATION if split == "validation" else TEST
    genres = ("sib200",) if split == "validation" else ("sib200", "ntrex")
    languages = (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)
    found = {
        genre: {lang: text.sentences(genre, lang, split)[: sizes.of(lang, target)] for lang in languages}
        for genre in genres
    }
    return found | {"same genre": {target: text.same_genre(target, split)[: sizes.target]}}


def score(model: nn.Module, tokenizer, sentences: Mapping[str, Mapping[str, Sequence[str]]]) -> Scores:
    """Scores each sentence alone after BOS.

    Returns:
        The summed loss of each sentence, in the order given.
    """
    flat = [
        (genre, lang, text) for genre, by_lang in sentences.items() for lang, texts in by_lang.items() for text in texts
    ]
    losses = sentence_losses(model, tokenizer, [text for _, _, text in flat])
    scores: Scores = {genre: {lang: [] for lang in by_lang} for genre, by_lang in sentences.items()}
    for (genre, lang, _), loss in zip(flat, losses, strict=True):
        scores[genre][lang].append(round(loss, 4))
    return scores


def sentence_losses(model: nn.Module, tokenizer, texts: Sequence[str]) -> list[float]:
    """Returns the summed negative log-likelihood of each text, in nats, each alone after BOS, in batches by length."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = [[*bos_ids(tokenizer), *x][:_LONGEST] for x in encoded]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    losses = [0.0] * len(ids)
    device = device_of(model)
    with evaluation_mode(model):
        for batch in _batches(order, ids, _TOKENS_PER_BATCH.get(device.type, 1024)):
            longest = len(ids[batch[-1]])
            # Padding on the right changes nothing: no token sees what comes after it.
            padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in batch], device=device)
            rows = token_losses(model, padded).cpu()
            for i, row in zip(batch, rows, strict=True):
                losses[i] = row[: len(ids[i]) - 1].sum().item()
    return losses


def num_tokens(tokenizer, sentences: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, dict[str, list[int]]]:
    """Returns the number of predicted tokens of each sentence."""
    return {
        genre: {
            lang: [min(len(x) + len(bos_ids(tokenizer)), _LONGEST) - 1 for x in _encode(tokenizer, texts)]
            for lang, texts in by_lang.items()
        }
        for genre, by_lang in sentences.items()
    }


def mean_drift(model: nn.Module, samples: Mapping[str, torch.Tensor]) -> float:
    """Returns KL(base || trained) in nats per token, averaged over languages, on text sampled from the base."""
    by_language = drift(model, samples)
    return sum(x["kl"] for x in by_language.values()) / len(by_language)


def _encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]], tokens: int):
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(ids[i]) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
