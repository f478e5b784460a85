"""Training text that need not fit in memory: read as it goes, shuffled, apart from evaluation text, resumable."""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ssetools.errors import InvalidInput
from ssetools.languages import Language, get_language
from ssetools.text.hub import document_key, held_out_documents, hub_revision, hub_shards
from ssetools.text.own import files_digest, own_documents, own_files
from ssetools.text.sources import Source, describe_source, load_texts, parse_sources

Shard = Callable[[int], Iterator[str]]


@dataclass(frozen=True)
class Position:
    """A place in a stream from which it can go on.

    Attributes:
        places: For each source, the shard and the documents already read from it.
        turn: Source whose turn it is.
        block: Blocks already shuffled and given.
    """

    places: list[list[int]] = field(default_factory=list)
    turn: int = 0
    block: int = 0


class TextStream:
    """The training documents of a language, read lazily, the same in every pass. Make one with `stream_texts`.

    Attributes:
        source: As given.
        lang: Language code.
        overlap: What evaluation text holds, and how many lines were left out because of it.
        facts: What determines the text: JSON-able, for provenance and for the names of caches.
    """

    def __init__(self, source: str, lang: str, avoid: Sequence[str], seed: int, buffer: int):
        if buffer < 1:
            raise InvalidInput(f"The buffer holds {buffer} documents: it needs at least 1.")
        self.source, self.lang, self.seed, self.buffer = source, lang, seed, buffer
        self._parts = [_open(part, lang) for part in parse_sources(source)]
        held_out = [text for part in self._parts for text in part.held_out]
        self.overlap = Overlap([*avoid, *held_out], get_language(lang))
        revisions = [part.revision for part in self._parts]
        self.facts = {"source": source, "lang": lang, "revisions": revisions, "seed": seed, "buffer": buffer}
        self.facts["avoids"] = self.overlap.digest

    def __iter__(self) -> Iterator[str]:
        for texts, _ in self.blocks():
            yield from texts

    def blocks(self, start: Position | None = None) -> Iterator[tuple[list[str], Position]]:
        """Yields shuffled blocks of documents, each with the position after it.

        Args:
            start: A position that an earlier pass gave; None starts at the beginning.

        Yields:
            `(documents, position)`; a block has up to `buffer` documents.
        """
        start = start or Position([[0, 0] for _ in self._parts])
        gathered: list[str] = []
        block, after = start.block, start
        for text, places, turn in self._alternate(start):
            after = Position(places, turn, block + 1)
            gathered.append(text)
            if len(gathered) == self.buffer:
                yield self._shuffled(gathered, block), after
                gathered, block = [], block + 1
        if gathered:
            yield self._shuffled(gathered, block), after

    def _shuffled(self, texts: list[str], block: int) -> list[str]:
        # Each block has an order of its own that depends on seed and number alone: nothing to carry over a stop.
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + block))
        apart = (self.overlap.without(texts[i]) for i in order.tolist())
        return [text for text in apart if text]

    def _alternate(self, start: Position) -> Iterator[tuple[str, list[list[int]], int]]:
        """One document of each source in turn, so that a small budget sees all of them; ended ones are passed over."""
        places = [list(place) for place in start.places]
        readers = [part.read(self.seed, place) for part, place in zip(self._parts, places, strict=True)]
        going, turn = set(range(len(readers))), start.turn
        while going:
            if turn in going:
                found = next(readers[turn], None)
                if found is None:
                    going.discard(turn)
                else:
                    text, places[turn] = found
                    yield text, [list(place) for place in places], (turn + 1) % len(readers)
            turn = (turn + 1) % len(readers)


def stream_texts(source: str, lang: str, avoid: Sequence[str] = (), seed: int = 0, buffer: int = 1000) -> TextStream:
    """Opens the training text of a language to be read as it goes, however much there is of it.

    The files of a source are read in an order that the seed chooses, in blocks of `buffer` documents that the seed
    shuffles; several sources take turns, document by document. Lines that share 50 letters in a row (16 in Chinese
    and Japanese) with `avoid` or with the held-out text of a streamed source are left out.

    Args:
        source: As in `load_texts`: "glotcc", "fineweb2" and "wikipedia" are streamed from the hub or from a local copy
            ("glotcc:FOLDER"), a file or folder of your own from disk. Several join with "+".
        lang: Language code.
        avoid: Evaluation documents that must not be trained on.
        seed: Of the order.
        buffer: Documents shuffled together.

    Returns:
        An iterable of documents, for `finetune` or for a loop; the same in each pass and on each machine.

    Raises:
        ValueError: For an unknown language or source, or one that has no training text in this language.
        TextUnavailable: For a set that cannot be reached, with the remedy.
    """
    return TextStream(source, lang, avoid, seed, buffer)


@dataclass(frozen=True)
class _Part:
    """One source of a stream: its shards, what identifies them, and the text that it holds out."""

    shards: list[Shard]
    revision: str
    held_out: Sequence[str] = ()

    def read(self, seed: int, place: list[int]) -> Iterator[tuple[str, list[int]]]:
        """Documents from a place on, each with the place after it."""
        order = torch.randperm(len(self.shards), generator=torch.Generator().manual_seed(seed)).tolist()
        for turn in range(place[0], len(order)):
            row = place[1] if turn == place[0] else 0
            for text in self.shards[order[turn]](row):
                row += 1
                if text:
                    yield text, [turn, row]


def _open(source: Source, lang: str) -> _Part:
    language = get_language(lang)
    source.check()
    if source.streamed:
        name, folder = source.name, source.folder
        held_out = held_out_documents(name, folder, language)
        shards = [_kept(shard, set(held_out)) for shard in hub_shards(name, folder, language)]
        return _Part(shards, hub_revision(name, folder, language), list(held_out.values()))
    if source.is_own:
        files, by_hash = own_files(Path(source.folder), lang, "train")
        if not files:
            raise InvalidInput(f"Source '{source}' has no train text for {lang!r}.")

        def documents(skip: int) -> Iterator[str]:
            found = (text for _, text in own_documents(files, "train", by_hash))
            for _ in range(skip):
                next(found, None)
            yield from found

        return _Part([documents], files_digest(files))
    texts = load_texts(str(source), lang, "train")
    return _Part([lambda skip: iter(texts[skip:])], json.dumps(describe_source(str(source), lang), sort_keys=True))


def _kept(shard: Shard, held_out: set[str]) -> Shard:
    """Empties held-out documents; they still count, so that positions stay true to the file."""
    return lambda skip: ("" if text and document_key(text) in held_out else text for text in shard(skip))


# --- overlap ---


SPAN = 50
_DENSE_SPAN = 16  # a Chinese or Japanese character says about as much as three letters
_DENSE_SCRIPTS = {"Hans", "Hant", "Hani", "Jpan"}
_BASE = np.uint64(0x9E3779B97F4A7C15)  # any odd number is invertible modulo 2**64
_BITS = 25
_SHIFT = np.uint64(64 - _BITS)


class Overlap:
    """Finds lines that share a run of letters with evaluation text.

    Only letters and digits count, without case and accents, so that spacing, punctuation and line breaks do not hide
    a copy. All runs of `span` letters of the evaluation text are kept as 64-bit hashes, 8 bytes each.

    Attributes:
        span: Letters that a run has: 50, or 16 in Chinese and Japanese. Shorter evaluation texts are not looked for:
            they cannot be told from common phrases.
        lines: How many lines were left out so far.
        digest: Stands for the evaluation text, in names of caches.
    """

    def __init__(self, texts: Iterable[str], language: Language):
        self.span = _DENSE_SPAN if language.script in _DENSE_SCRIPTS else SPAN
        self.lines = 0
        found = [_hashes(_letters(text)[0], self.span) for text in texts]
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
        # Most runs of most texts are in no evaluation text: one look into a table of bits says so for nearly all.
        self._table = np.zeros(1 << _BITS, bool)
        self._table[self._hashes >> _SHIFT] = True
        self.digest = hashlib.sha256(self._hashes.tobytes() + bytes([self.span])).hexdigest()

    def without(self, text: str) -> str:
        """Returns `text` without the lines of which any letter is in a shared run; "" if nothing is left."""
        if not len(self._hashes):
            return text
        letters, line_of = _letters(text)
        hashes = _hashes(letters, self.span)
        hits = np.flatnonzero(self._table[hashes >> _SHIFT])
        nearest = np.searchsorted(self._hashes, hashes[hits]).clip(max=len(self._hashes) - 1)
        hits = hits[self._hashes[nearest] == hashes[hits]]
        if not len(hits):
            return text
        gone: set[int] = set()
        for first, last in set(zip(line_of[hits].tolist(), line_of[hits + self.span - 1].tolist(), strict=True)):
            gone.update(range(first, last + 1))
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
    """Polynomial hashes [len - span + 1] of all runs of `span` letters, from running sums modulo 2**64."""
    if len(letters) < span:
        return np.empty(0, np.uint64)
    powers, inverse = _powers(len(letters))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * powers, dtype=np.uint64)])
    # The top bits choose the place in the table, so they have to depend on every letter: multiply them up.
    mixed = (sums[span:] - sums[:-span]) * inverse[: len(letters) - span + 1]
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


_POWERS: list[np.ndarray] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, 0 to count - 1; kept, since every document needs them."""
    if len(_POWERS[0]) < count:
        size = 1 << (count - 1).bit_length()
        for place, base in enumerate((int(_BASE), pow(int(_BASE), -1, 1 << 64))):
            factors = np.full(size, base, np.uint64)
            factors[0] = 1
            _POWERS[place] = np.cumprod(factors, dtype=np.uint64)
    return _POWERS[0][:count], _POWERS[1][:count]
