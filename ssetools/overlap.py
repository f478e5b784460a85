"""Leaves out of training text what evaluation text holds too."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from ssetools.languages import Language

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
