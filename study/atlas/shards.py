"""Neurons of every language: counts kept apart in shards of text, and the sets that ship with the package.

Counts add, so a profile kept in shards of equal length can be put together again from any of them: from all, from one
half against the other, or from a resampling. All the atlas's intervals come from this.
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

from ssetools.files import load_tensors, read_json, save_tensors
from ssetools.languages import get_language
from ssetools.models import model_source
from ssetools.neurons.counts import ActivationProfile, counting
from ssetools.text import embedded
from ssetools.text.sources import SPLITS, load_texts
from ssetools.text.windows import bos_ids, pack_tokens

SHARDS = 8
SHARD_TOKENS = 200
TOP_RATES = (0.01, 0.05)
_MESSAGES = 700


@dataclass
class ShardedProfile:
    """Activation counts of many languages, kept apart by shard of text.

    Attributes:
        counts: ByteTensor [languages, shards, layers, neurons]: tokens of the shard on which the neuron fired.
        languages: Codes, in the order of the first axis.
        shard_tokens: Tokens in each shard.
        metadata: Model, revision and source of the counting.
    """

    counts: torch.Tensor
    languages: list[str]
    shard_tokens: int
    metadata: dict = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Shards of each language."""
        return self.counts.shape[1]

    def profile(
        self, shards: Sequence[int] | torch.Tensor | None = None, languages: Sequence[str] | None = None
    ) -> ActivationProfile:
        """Adds shards up to one profile.

        Args:
            shards: Which shards, the same for every language; or a LongTensor [languages, picks] of them by language, where
                one may come twice. None takes all.
            languages: Codes; None takes all.
        """
        languages = list(languages or self.languages)
        rows = [self.languages.index(language) for language in languages]
        picks = torch.arange(self.num_shards) if shards is None else torch.as_tensor(shards)
        picks = picks.expand(len(rows), -1)
        counts = torch.stack([self.counts[row][pick].sum(0) for row, pick in zip(rows, picks, strict=True)])
        tokens = torch.full((len(rows),), picks.shape[1] * self.shard_tokens)
        return ActivationProfile(counts, tokens, languages, self.metadata)

    def halves(
        self, times: int, shards: int, languages: Sequence[str] | None = None, seed: int = 0
    ) -> Iterator[tuple[ActivationProfile, ActivationProfile]]:
        """Gives pairs of profiles of `shards` shards each that have no text in common."""
        if not 0 < 2 * shards <= self.num_shards:
            raise ValueError(f"Two parts of {shards} shards do not fit into {self.num_shards}.")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(times):
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
    """Counts activations of many languages, one file a language, shard by shard.

    Every language gets the same number of tokens: `shards` windows, spread evenly over its text, each opened by BOS,
    which is not counted. Only one language is in memory at a time, and a language that has its file is not counted
    again, so a stopped run goes on.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        languages: Codes.
        folder: Where the files lie.
        source: As in `atlas_texts`.
        shards: Shards of each language.
        shard_tokens: Tokens of each shard, at most 255.
        seconds: Stop after the language that reaches this time; None goes to the end.

    Returns:
        The languages that are still to be counted.

    Raises:
        ValueError: If a language has too little text, a shard more tokens than a byte counts, or a file is of another
            model, text or size.
    """
    if shard_tokens > 255:
        raise ValueError(f"A shard holds at most 255 tokens, the most that a byte counts; got {shard_tokens}.")
    facts = {**model_source(model), "source": source, "shards": shards, "shard_tokens": shard_tokens}
    started, left = time.monotonic(), []
    with counting(model) as count:
        for lang in languages:
            path = Path(folder) / f"{lang}.safetensors"
            if path.is_file():
                kept = load_tensors(path, "counts of the atlas", ("counts",))[1]
                differ = [f"{k} {kept.get(k)} (now {x})" for k, x in facts.items() if str(kept.get(k)) != str(x)]
                if differ:
                    raise ValueError(
                        f"{path} was counted with other {', '.join(differ)}: delete the folder to count again."
                    )
                continue
            if seconds is not None and time.monotonic() - started > seconds:
                left.append(lang)
                continue
            windows = _shards(tokenizer, atlas_texts(source, lang), shards, shard_tokens, lang)
            opening = len(windows[0]) - shard_tokens
            counts = torch.stack([count(window[None], opening) for window in windows])
            save_tensors(path, {"counts": counts.to(torch.uint8)}, facts)
    return left


def _shards(tokenizer, texts: Sequence[str], shards: int, shard_tokens: int, lang: str) -> list[torch.Tensor]:
    opening = len(bos_ids(tokenizer))
    full = [w for w in pack_tokens(tokenizer, texts, shard_tokens + opening) if len(w) == shard_tokens + opening]
    if len(full) < shards:
        raise ValueError(f"The text in {lang!r} has {len(full)} windows of {shard_tokens} tokens, not {shards}.")
    return [full[i * len(full) // shards] for i in range(shards)]


def load_shards(folder: str | Path, languages: Sequence[str]) -> ShardedProfile:
    """Reads what `profile_atlas` wrote for some languages.

    Raises:
        ValueError: If the files are of different models, sources or sizes.
        FileNotFoundError: If a language was never counted.
    """
    counts, facts = [], None
    for lang in languages:
        tensors, about = load_tensors(Path(folder) / f"{lang}.safetensors", "counts of a language", ("counts",))
        if facts is not None and about != facts:
            raise ValueError(f"{folder}/{lang}.safetensors was made with {about}, the others with {facts}.")
        counts, facts = [*counts, tensors["counts"]], about
    return ShardedProfile(torch.stack(counts), list(languages), int(facts["shard_tokens"]), facts)


def atlas_texts(source: str, lang: str) -> list[str]:
    """Loads all the text of a language that the atlas counts on.

    Args:
        source: "udhr", the whole declaration; "mediawiki", some hundred interface messages, the same in all languages
            that have them; or any other source of `load_texts`, its training text.
        lang: Language code.
    """
    if source == "udhr":
        return [text for split in SPLITS for text in load_texts(source, lang, split)]
    if source != "mediawiki":
        return load_texts(source, lang, "train")
    # Parsing all messages of all languages would take an hour; a sample of keys is enough.
    language = get_language(lang)
    found, english = (interface_messages(code) for code in (language.code_for("mediawiki"), "en"))
    chosen = sorted(found, key=lambda key: hashlib.sha1(key.encode()).hexdigest())[:_MESSAGES]
    return list(embedded.clean_messages({key: found[key] for key in chosen}, english, language).values())


@functools.lru_cache(maxsize=2)  # a language, and English beside it each time
def interface_messages(code: str) -> dict[str, str]:
    """Returns MediaWiki's wikitext by key; `code` is MediaWiki's own."""
    return read_json(embedded.mediawiki_folder() / f"{code}.json")


def load_results(folder: str | Path) -> dict:
    """Reads the analyses that `make atlas` wrote: "languages", "selections", "stability" and so on, by file name.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    found = {path.stem: read_json(path) for path in sorted(Path(folder).glob("*.json"))}
    if not found:
        raise FileNotFoundError(f"There are no results of the atlas in {folder}: run `make atlas`, or work in a clone.")
    return found
