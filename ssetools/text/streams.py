"""Training text that need not fit in memory: read lazily, shuffled, without evaluation text, resumable.

`datasets` does not resume exactly: `interleave_datasets(...).filter(...)` of its version 5.2 is up to three documents off.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ssetools.errors import InvalidInput
from ssetools.languages import Language, get_language
from ssetools.text.hub import HubText
from ssetools.text.own import Normalization, document_key, normalized
from ssetools.text.sources import Source, describe_source, keyed_documents, parse_sources


class TextStream:
    """The training documents of a language, read lazily, the same in every pass. Make one with `stream_texts`.

    `overlap` is the evaluation text, with the number of lines that were left out because of it; `facts` determine the
    text, JSON-able, for provenance and for the names of caches.
    """

    def __init__(self, source: str, lang: str, avoid: Sequence[str], seed: int, buffer: int, normalize: Normalization):
        if buffer < 1:
            raise InvalidInput(f"The buffer holds {buffer} documents: it needs at least 1.")
        self.source, self.lang, self._seed, self._buffer = source, lang, seed, buffer
        self._normalize: Normalization = normalize
        self._parts = [_open(part, lang) for part in parse_sources(source)]
        held_out = [text for part in self._parts for text in part.held_out.values()]
        self.overlap = Overlap([*avoid, *held_out], get_language(lang))
        self.facts: dict[str, Any] = {"source": source, "lang": lang, "seed": seed, "buffer": buffer}
        self.facts |= {"normalize": normalize, "avoids": self.overlap.digest}
        self.facts["revisions"] = [part.revision for part in self._parts]

    def __iter__(self) -> Iterator[str]:
        for texts, _ in self.blocks():
            yield from texts

    def blocks(self, start: dict[str, Any] | None = None) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Yields shuffled blocks of up to `buffer` documents, each with the position after it, at which a pass can start."""
        start = start or {"places": [[0, 0] for _ in self._parts], "turn": 0, "block": 0}
        documents = self._alternate(start["places"], start["turn"])
        for number in itertools.count(start["block"]):
            block = list(itertools.islice(documents, self._buffer))
            if not block:
                return
            # The order of a block depends on the seed and its number alone, so a position need not record it.
            order = _order(len(block), self._seed * 1_000_003 + number)
            texts = [self.overlap.without(normalized(block[i][0], self._normalize)) for i in order]
            _, places, turn = block[-1]
            yield list(filter(None, texts)), {"places": places, "turn": turn, "block": number + 1}

    def _alternate(self, places: list[list[int]], turn: int) -> Iterator[tuple[str, list[list[int]], int]]:
        """One document of each source in turn, so that a small budget has some of each; finished sources are skipped."""
        places = list(places)
        readers = [part.read(self._seed, place) for part, place in zip(self._parts, places, strict=True)]
        finished = 0  # sources in a row that have no more
        while finished < len(readers):
            reader, turn = turn, (turn + 1) % len(readers)
            document = next(readers[reader], None)
            finished = 0 if document else finished + 1
            if document:
                text, places[reader] = document
                yield text, list(places), turn


def stream_texts(
    source: str,
    lang: str,
    avoid: Sequence[str] = (),
    seed: int = 0,
    buffer: int = 1000,
    normalize: Normalization = "NFC",
) -> TextStream:
    """Opens the training text of a language to be read lazily, however much there is of it.

    The seed chooses the order of a source's files, and shuffles blocks of `buffer` documents; several sources take turns,
    document by document. Lines that share 50 letters in a row (16 in Chinese and Japanese) with `avoid` or with the
    held-out text of a streamed source are left out.

    `source`, `normalize` and errors are those of `load_texts`. The result is an iterable of documents, for `finetune` or for
    a loop, the same in each pass and on each machine.
    """
    return TextStream(source, lang, avoid, seed, buffer, normalize)


@dataclass(frozen=True)
class _Part:
    """One source of a stream."""

    shards: Sequence[Callable[[int], Iterable[str]]]  # each takes the number of documents to skip, and yields the rest
    revision: str
    held_out: dict[str, str] = field(default_factory=dict)  # by key

    def read(self, seed: int, place: list[int]) -> Iterator[tuple[str, list[int]]]:
        """Documents from a place on (a shard, and the documents already read from it), each with the place after it."""
        first, row = place
        for turn, shard in list(enumerate(_order(len(self.shards), seed)))[first:]:
            for text in self.shards[shard](row):
                row += 1
                if text and not (self.held_out and document_key(text) in self.held_out):
                    yield text, [turn, row]
            row = 0


def _open(source: Source, lang: str) -> _Part:
    source.check()
    if source.streamed:
        corpus = HubText(source.name, source.folder, get_language(lang))
        return _Part(corpus.shards(), corpus.revision(), corpus.held_out())

    def read(skip: int) -> Iterator[str]:
        documents = keyed_documents(source, lang, "train", normalize=None)
        return (text for _, text in itertools.islice(documents, skip, None))

    next(read(0))  # text that is missing is refused now, not when it is read
    return _Part([read], json.dumps(describe_source(str(source), lang, None), sort_keys=True))


def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


# --- overlap ---

_SPAN = 50
# Not `languages.UNSPACED_SCRIPTS`: letters of Thai and Khmer say as little as Latin ones, a Chinese or Japanese character
# about as much as three of them.
_LOGOGRAPHIC_SPAN, _LOGOGRAPHIC_SCRIPTS = 16, {"Hans", "Hant", "Hani", "Jpan"}
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers keep all their bits modulo 2**64


class Overlap:
    """Finds lines that share a run of letters with evaluation text, whose runs are kept as 64-bit hashes.

    Only letters and digits count, without case and accents, so that spacing, punctuation and line breaks do not hide
    a copy. A run has `span` letters: 50, or 16 in Chinese and Japanese; shorter texts may be common phrases. `lines` counts
    the lines that were left out so far, and `digest` identifies the evaluation text, in names of caches.
    """

    def __init__(self, texts: Iterable[str], language: Language):
        self.span = _LOGOGRAPHIC_SPAN if language.script in _LOGOGRAPHIC_SCRIPTS else _SPAN
        self.lines = 0
        hashes = [_hashes(_letters(text)[0], self.span) for text in texts]
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        self.digest = hashlib.sha256(self._hashes.tobytes() + bytes([self.span])).hexdigest()

    def without(self, text: str) -> str:
        """Returns `text` without the lines of which any letter is in a shared run; "" if nothing is left."""
        if not len(self._hashes):
            return text
        letters, line_of = _letters(text)
        hashes = _hashes(letters, self.span)
        nearest = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        hits = np.flatnonzero(self._hashes[nearest] == hashes)
        if not len(hits):
            return text
        spans = set(zip(line_of[hits].tolist(), line_of[hits + self.span - 1].tolist(), strict=True))
        gone = {line for first, last in spans for line in range(first, last + 1)}
        self.lines += len(gone)
        return "\n".join(line for i, line in enumerate(text.split("\n")) if i not in gone).strip()


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The code points of letters and digits, folded and without accents, and the number of the line of each."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    points = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    kept = _is_letter()[points]
    return points[kept], np.cumsum(points == 10, dtype=np.int32)[kept]


@functools.cache
def _is_letter() -> np.ndarray:
    return np.fromiter((chr(i).isalnum() for i in range(0x110000)), bool, 0x110000)


def _hashes(letters: np.ndarray, span: int) -> np.ndarray:
    """Polynomial hashes [len - span + 1] of all runs of `span` letters, modulo 2**64."""
    if len(letters) < span:
        return np.empty(0, np.uint64)
    powers = np.cumprod(np.full(span, _BASE), dtype=np.uint64)
    return np.lib.stride_tricks.sliding_window_view(letters.astype(np.uint64), span) @ powers
