"""Training text that need not fit in memory: read as it goes, shuffled, apart from evaluation text, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ssetools.corpora import describe_source, load_texts
from ssetools.hub_corpora import HUB_CORPORA, document_key, held_out_documents, hub_revision, hub_shards
from ssetools.languages import get_language
from ssetools.overlap import Overlap
from ssetools.own_text import files_digest, own_documents, own_files

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
            raise ValueError(f"The buffer holds {buffer} documents: it needs at least 1.")
        self.source, self.lang, self.seed, self.buffer = source, lang, seed, buffer
        self._parts = [_open(part.strip(), lang) for part in source.split("+")]
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


def _open(part: str, lang: str) -> _Part:
    language = get_language(lang)
    name, _, folder = part.partition(":")
    if name in HUB_CORPORA and HUB_CORPORA[name].streamed:
        if folder and not Path(folder).is_dir():
            raise ValueError(f"Source {part!r} names a folder that does not exist: {folder}.")
        held_out = held_out_documents(name, folder, language)
        shards = [_kept(shard, set(held_out)) for shard in hub_shards(name, folder, language)]
        return _Part(shards, hub_revision(name, folder, language), list(held_out.values()))
    if name not in HUB_CORPORA and Path(part).exists():
        files, by_hash = own_files(Path(part), lang, "train")
        if not files:
            raise ValueError(f"Source {part!r} has no train text for {lang!r}.")

        def documents(skip: int) -> Iterator[str]:
            found = (text for _, text in own_documents(files, "train", by_hash))
            for _ in range(skip):
                next(found, None)
            yield from found

        return _Part([documents], files_digest(files))
    texts = load_texts(part, lang, "train")
    return _Part([lambda skip: iter(texts[skip:])], json.dumps(describe_source(part, lang), sort_keys=True))


def _kept(shard: Shard, held_out: set[str]) -> Shard:
    """Empties held-out documents; they still count, so that positions stay true to the file."""
    return lambda skip: ("" if text and document_key(text) in held_out else text for text in shard(skip))
