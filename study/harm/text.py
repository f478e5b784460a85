"""Real running text for the comparison: training text, and sentences of the same and of unseen genres to score."""

from __future__ import annotations

import csv
import functools
import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssetools.languages import TARGET_LANGUAGES, get_language
from ssetools.text.streams import Overlap

_BLOCK = 4000  # characters of neighbouring lines that stay in one split
_SENTENCE_END = re.compile(r"(?<=[.!?…։။።।])\s+")
_LENGTHS = (40, 300)  # characters of a sentence that is scored alone
_SEED = 7


@dataclass(frozen=True)
class RealText:
    """The three folders of real text. Nothing of them is part of the project.

    Attributes:
        corpora: `<lang>/*.txt`, running text to train on; held-out blocks of it are the same genre.
        ntrex: `<lang>.txt`, one news sentence a line, the same line in every language; an unseen genre.
        sib200: SIB-200 in its hub layout, `data/<code>/<split>.tsv`; an unseen genre.
    """

    corpora: Path
    ntrex: Path
    sib200: Path

    def training(self, lang: str) -> tuple[list[str], int]:
        """Returns the training blocks of a language without what any scored text holds, and how many lines that cost."""
        scored = [*self.same_genre(lang, "validation"), *self.same_genre(lang, "test"), *_lines(self.ntrex, lang)]
        for split in ("validation", "test"):
            scored += self.sentences("sib200", lang, split)
        overlap = Overlap(scored, get_language(lang))
        blocks = [overlap.without(block) for block in self._blocks(lang, "train")]
        return [block for block in blocks if block], overlap.lines

    def other_languages(self, lang: str, characters: int) -> list[str]:
        """Returns the placebo: about `characters` of training text of each of the other languages, mixed."""
        mixed = []
        for other in (x for x in TARGET_LANGUAGES if x != lang):
            blocks, _ = self.training(other)
            random.Random(_SEED).shuffle(blocks)
            taken = 0
            for block in blocks:
                mixed.append(block)
                taken += len(block)
                if taken >= characters:
                    break
        random.Random(_SEED).shuffle(mixed)
        return mixed

    def same_genre(self, lang: str, split: str) -> list[str]:
        """Returns sentences of held-out blocks of the training corpus, in a fixed random order."""
        sentences = [s for block in self._blocks(lang, split) for s in _SENTENCE_END.split(block.replace("\n", " "))]
        return _shuffled(s for s in sentences if _LENGTHS[0] <= len(s) <= _LENGTHS[1])

    def sentences(self, genre: str, lang: str, split: str) -> list[str]:
        """Returns the sentences of an unseen genre ("sib200" or "ntrex") in the same order in every language.

        NTREX has no splits: all of it is test text.
        """
        if genre == "ntrex":
            return _shuffled(_lines(self.ntrex, lang))
        path = self.sib200 / "data" / get_language(lang).code_for("sib200") / f"{split}.tsv"
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            by_index = {int(row["index_id"]): _composed(row["text"]) for row in rows}
        return _shuffled(by_index[i] for i in sorted(by_index))

    def describe(self, lang: str) -> dict[str, str]:
        """Returns the SHA-256 of each training file, by name."""
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in self._files(lang)}

    @functools.cache  # noqa: B019 (one object for the life of the process)
    def _blocks(self, lang: str, split: str) -> tuple[str, ...]:
        blocks = []
        for path in self._files(lang):
            gathered: list[str] = []
            for line in path.read_text(encoding="utf-8").splitlines():
                gathered.append(_composed(line.strip()))
                if sum(map(len, gathered)) >= _BLOCK:
                    blocks.append("\n".join(gathered))
                    gathered = []
            if gathered:
                blocks.append("\n".join(gathered))
        parts = {"validation": (8,), "test": (9,), "train": tuple(range(8))}[split]
        return tuple(block for i, block in enumerate(blocks) if i % 10 in parts)

    def _files(self, lang: str) -> list[Path]:
        found = sorted((self.corpora / lang).glob("*.txt"))
        if not found:
            raise FileNotFoundError(f"There is no {self.corpora / lang}/*.txt: name the folder of corpora.")
        return found


def _lines(folder: Path, lang: str) -> list[str]:
    return [_composed(line.strip()) for line in (folder / f"{lang}.txt").read_text(encoding="utf-8").splitlines()]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shuffled(texts: Iterable[str]) -> list[str]:
    found: Sequence[str] = list(texts)
    order = list(range(len(found)))
    random.Random(_SEED).shuffle(order)
    return [found[i] for i in order]
