"""Activation counts of every language, stored by shard of text, and the analyses made from them.

Counts add, so a profile can be formed from any of the shards, which are of equal length: from all of them, from one half,
or from a bootstrap resample. The intervals of the atlas come from such resamples.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import kept, load_tensors, read_json, save_tensors
from ssetools.languages import get_language
from ssetools.models import model_source
from ssetools.neurons.counts import ActivationProfile, counting
from ssetools.text import embedded
from ssetools.text.own import normalized
from ssetools.text.sources import SPLITS, load_texts
from ssetools.text.windows import bos_ids, pack_tokens

SHARDS = 8
SHARD_TOKENS = 200
TOP_RATES = (0.01, 0.05)
_MESSAGES = 700


@dataclass
class ShardedProfile:
    """Activation counts of many languages, by shard of text.

    Attributes:
        counts: ByteTensor [languages, shards, layers, neurons]: tokens of the shard on which the neuron fired.
        languages: Language codes, in the order of the first axis.
        shard_tokens: Tokens in each shard.
        metadata: Model, revision and text source of the counts.
    """

    counts: torch.Tensor
    languages: list[str]
    shard_tokens: int
    metadata: dict = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Number of shards of each language."""
        return self.counts.shape[1]

    def profile(
        self, shards: Sequence[int] | torch.Tensor | None = None, languages: Sequence[str] | None = None
    ) -> ActivationProfile:
        """Returns the profile that is the sum of some shards.

        Args:
            shards: Indices of shards, the same for every language; or a LongTensor [languages, picks] of indices, which may
                repeat. None takes every shard once.
            languages: Language codes; None takes all.
        """
        languages = list(languages or self.languages)
        rows = [self.languages.index(language) for language in languages]
        picks = torch.arange(self.num_shards) if shards is None else torch.as_tensor(shards)
        picks = picks.expand(len(rows), -1)
        counts = torch.stack([self.counts[row][pick].sum(0) for row, pick in zip(rows, picks, strict=True)])
        tokens = torch.full((len(rows),), picks.shape[1] * self.shard_tokens)
        return ActivationProfile(counts, tokens, languages, self.metadata)

    def halves(
        self, splits: int, shards: int, languages: Sequence[str] | None = None, seed: int = 0
    ) -> Iterator[tuple[ActivationProfile, ActivationProfile]]:
        """Yields one pair of profiles for each random split: `shards` shards each, no text in common.

        Raises:
            ValueError: If two parts of `shards` shards are more than there are.
        """
        if not 0 < 2 * shards <= self.num_shards:
            raise InvalidInput(f"Two parts of {shards} shards need {2 * shards} shards; there are {self.num_shards}.")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(splits):
            order = torch.randperm(self.num_shards, generator=generator)
            yield (self.profile(order[:shards], languages), self.profile(order[shards : 2 * shards], languages))


def profile_atlas(
    model: nn.Module,
    tokenizer,
    languages: Sequence[str],
    folder: str | Path,
    source: str = "udhr",
    shards: int = SHARDS,
    shard_tokens: int = SHARD_TOKENS,
    seconds: float | None = None,
) -> list[str]:
    """Counts activations of many languages, shard by shard, and writes one file for each language.

    Every language has the same number of tokens: `shards` windows, spaced evenly over its text. Each window starts with
    BOS, which is not counted. Languages whose file exists are not counted again, so an interrupted run can be resumed.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        languages: Language codes.
        folder: Folder of the files.
        source: As in `atlas_texts`.
        shards: Shards of each language.
        shard_tokens: Tokens of each shard, at most 255.
        seconds: No language is started after this time; None sets no limit.

    Returns:
        The languages that are not counted yet.

    Raises:
        ValueError: If a language has too little text, a shard has more tokens than a byte can count, or an existing file
            was made from another model, text or shard size.
    """
    if shard_tokens > 255:
        raise InvalidInput(f"shard_tokens is {shard_tokens}; a byte counts at most 255. Use more and shorter shards.")
    facts = {**model_source(model), "source": source, "shards": shards, "shard_tokens": shard_tokens}
    started, remaining = time.monotonic(), []
    with counting(model) as count:
        for lang in languages:
            path = Path(folder) / f"{lang}.safetensors"
            if kept(path, facts, remedy="Name another runs folder, or delete this one to count again."):
                continue
            if seconds is not None and time.monotonic() - started > seconds:
                remaining.append(lang)
                continue
            windows = _shards(tokenizer, atlas_texts(source, lang), shards, shard_tokens, lang)
            bos_tokens = len(windows[0]) - shard_tokens
            counts = torch.stack([count(window[None], bos_tokens) for window in windows])
            save_tensors(path, {"counts": counts.to(torch.uint8)}, facts)
    return remaining


def _shards(tokenizer, texts: Sequence[str], shards: int, shard_tokens: int, lang: str) -> list[torch.Tensor]:
    size = shard_tokens + len(bos_ids(tokenizer))
    full = [window for window in pack_tokens(tokenizer, texts, size) if len(window) == size]
    if len(full) < shards:
        raise InvalidInput(
            f"The text in {lang!r} has {len(full)} windows of {shard_tokens} tokens; {shards} are needed. Leave the "
            "language out, or use another source."
        )
    return [full[i * len(full) // shards] for i in range(shards)]


def load_shards(folder: str | Path, languages: Sequence[str]) -> ShardedProfile:
    """Reads the counts that `profile_atlas` wrote.

    Raises:
        ValueError: If the files were made from different models, sources or shard sizes.
        FileNotFoundError: If a language has not been counted.
    """
    counts, facts = [], {}
    for lang in languages:
        path = Path(folder) / f"{lang}.safetensors"
        tensors, own_facts = load_tensors(path, "activation counts of a language", ("counts",))
        facts = facts or own_facts
        if own_facts != facts:
            raise InvalidInput(
                f"{path} was made with {own_facts}, but {languages[0]}.safetensors with {facts}. Delete the older of the "
                "two, and count that language again."
            )
        counts.append(tensors["counts"])
    return ShardedProfile(torch.stack(counts), list(languages), int(facts["shard_tokens"]), facts)


def atlas_texts(source: str, lang: str) -> list[str]:
    """Loads all the text of a language on which the atlas counts.

    Args:
        source: "udhr" (the whole declaration), "mediawiki" (some hundred interface messages, the same ones in all
            languages that have them), or any other source of `load_texts`, of which the training text is used.
        lang: Language code.
    """
    if source == "udhr":
        return [text for split in SPLITS for text in load_texts(source, lang, split)]
    if source != "mediawiki":
        return load_texts(source, lang, "train")
    # Parsing all messages of all languages would take an hour, so a sample of message keys is used.
    language = get_language(lang)
    messages, english = (interface_messages(code) for code in (language.code_for("mediawiki"), "en"))
    sample = sorted(messages, key=lambda key: hashlib.sha1(key.encode()).hexdigest())[:_MESSAGES]
    texts = embedded.clean_messages({key: messages[key] for key in sample}, english, language).values()
    return [normalized(text, "NFC") for text in texts]


@functools.lru_cache(maxsize=2)  # one language at a time, and English, with which each is compared
def interface_messages(code: str) -> dict[str, str]:
    """Returns the interface messages as wikitext by message key; `code` is MediaWiki's language code."""
    return read_json(embedded.mediawiki_folder() / f"{code}.json")


def load_results(folder: str | Path) -> dict:
    """Reads the analyses that `make atlas` wrote, by file name: "languages", "selections", "stability" and so on.

    Raises:
        FileNotFoundError: If the folder has none.
    """
    analyses = {path.stem: read_json(path) for path in sorted(Path(folder).glob("*.json"))}
    if not analyses:
        raise FileNotFoundError(
            f"{folder} has no results of the atlas. Run `make atlas`, or work in a clone of the repository."
        )
    return analyses
