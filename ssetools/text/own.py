"""Text of your own: .txt, .jsonl, .csv, .tsv and .parquet files, found by language and split, read lazily."""

from __future__ import annotations

import codecs
import csv
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ssetools.errors import InvalidInput
from ssetools.files import digest_of, file_sha256
from ssetools.languages import find_language

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"] | None
SPLITS = ("train", "validation", "test")
OWN_SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "devel"),
    "test": ("test", "testing", "devtest", "eval", "evaluation"),  # "eval" as the library datasets reads it
}
_REMEMBERED = 200_000  # documents that are compared with later ones, so that memory does not grow with the text


def normalized(text: str, form: Normalization) -> str:
    """Returns the text in a Unicode normalization form (in NFC an accented letter is one character), or unchanged."""
    return unicodedata.normalize(form, text) if form else text


def document_key(text: str) -> str:
    """Returns the key of a document: a hash of its text, the same for composed and decomposed accents."""
    return hashlib.sha1(normalized(text, "NFC").encode()).hexdigest()


def split_of(key: str) -> str:
    """Returns the split of a document: 80/10/10 by a hash of its key, the same on every machine."""
    tenth = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


class OwnText:
    """Your own text in one language: a file or a folder; `rule` is a sentence that says how documents are split.

    If folders or files are named after languages, by any code or name, only those of this language are read; a code that
    is not in the table of languages is compared as it is. If they are named after splits (`train.txt`, `yo_dev.jsonl`,
    `test/`), documents have the split of their file; otherwise a hash of each document chooses its split, and repeated
    documents are left out. Hidden files and folders are not read. `column` holds the text; "" takes "text" or "content".
    No readable file, or text in other languages alone, is an `InvalidInput`.
    """

    def __init__(self, path: Path, lang: str, column: str = ""):
        self._root, self._column = path, column
        if path.is_dir():
            files = _in_language(_text_files(path), path, lang)
            splits = {file: _split_in(file.relative_to(path)) for file in files}
        elif path.suffix.lower() in OWN_SUFFIXES:
            splits = {path: ""}
        else:
            remedy = f"those end in {', '.join(OWN_SUFFIXES)}. Unpack an archive, or convert the file."
            raise InvalidInput(f"{path} is not a text file that can be read: {remedy}")
        counts = Counter(splits.values())
        self._by_hash = set(counts) == {""}
        self._files = {x: [file for file in splits if self._by_hash or splits[file] == x] for x in SPLITS}
        if self._by_hash:
            self.rule = f"A hash of each document in {path} chooses its split: 80% train, 10% validation, 10% test."
        else:
            unused = f"; {counts['']} with no split in the name are not used" if counts[""] else ""
            listed = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
            self.rule = f"The names of files and folders in {path} choose the splits: {listed} files{unused}."

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Yields the documents of one split, each with a key: its file and number, or the hash that chose the split."""
        seen: dict[str, None] = {}
        for path in self._files[split]:
            for number, text in enumerate(read_documents(path, self._column)):
                if not self._by_hash:
                    yield f"{path.relative_to(self._root)}#{number}", text
                elif (key := document_key(text)) not in seen:
                    seen[key] = None
                    if len(seen) > _REMEMBERED:
                        del seen[next(iter(seen))]
                    if split_of(key) == split:
                        yield key, text
        if self._by_hash and not seen:
            raise InvalidInput(f"{self._root} is empty: there is no text in it.")

    def digest(self) -> str:
        """Returns a SHA-256 that identifies the text: of the files of each split, and the column."""
        hashes = {file: file_sha256(file) for files in self._files.values() for file in files}
        return digest_of([self._column, [[hashes[file] for file in self._files[split]] for split in SPLITS]])


def _text_files(folder: Path) -> list[Path]:
    """Lists the text files of a folder. Links are followed, and a folder that they lead to twice is read once."""
    files: list[Path] = []
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        files += [Path(root, x) for x in names if not x.startswith(".")]
    texts = sorted(file for file in files if file.suffix.lower() in OWN_SUFFIXES)
    if not texts:
        but = f", but {', '.join(sorted(file.name for file in files)[:3])}" if files else ""
        raise InvalidInput(f"The folder {folder} has no {', '.join(OWN_SUFFIXES)} file{but}.")
    if broken := [file for file in texts if not file.exists()]:
        raise InvalidInput(f"{broken[0]} is a link to a file that does not exist: correct or remove it.")
    return texts


def _in_language(files: list[Path], root: Path, lang: str) -> list[Path]:
    """Chooses the files of a language by whole names; if none is a language, by their beginnings and ends."""
    languages = {file: _language_in(file.relative_to(root), lang, whole=True) for file in files}
    if not any(languages.values()):
        languages = {file: _language_in(file.relative_to(root), lang, whole=False) for file in files}
        if len(set(languages.values()) - {""}) < 2:  # "my_text.txt" alone is not Burmese
            return files
    asked = find_language(lang)
    mine = [file for file in files if languages[file] == (asked.code if asked else lang)]
    if not mine:
        others = ", ".join(sorted(set(languages.values()) - {""})[:5])
        said = (
            f"{root} has text in other languages by the names of its files and folders ({others}), and none in {lang}"
        )
        raise InvalidInput(f"{said}: name one of them after {lang}, or give the path of the text itself.")
    return mine


def _language_in(path: Path, lang: str, whole: bool) -> str:
    """The code of the language after which a file, or the outermost folder around it, is named; "" for none."""
    for name in (*path.parts[:-1], path.stem):
        words = _words_without_split(name)[1]
        for candidate in [words] if whole else [words[:1], words[:2], words[-1:], words[-2:]]:
            text = "-".join(candidate)
            language = find_language(text)
            if language or text == lang:
                return language.code if language else lang
    return ""


def _split_in(path: Path) -> str:
    """The split after which a file, or the innermost folder around it, is named; "" for none."""
    names = (path.stem, *reversed(path.parts[:-1]))
    return next((split for split, _ in map(_words_without_split, names) if split), "")


def _words_without_split(name: str) -> tuple[str, list[str]]:
    """Splits a name into words, and takes the split off its beginning or end ("yo_train-00001" is "train" of "yo")."""
    words = re.split(r"[-_. ]+", name)
    while len(words) > 1 and (words[-1].isdigit() or words[-1] == "of"):
        words.pop()
    for place in (0, -1):
        word = words[place].casefold().rstrip("0123456789")
        for split, names in _SPLIT_NAMES.items():
            if word in names:
                del words[place]
                return split, words
    return "", words


def read_documents(path: Path, column: str = "") -> Iterator[str]:
    """Reads the documents of one file, stripped, without empty and null ones.

    Documents of .txt are paragraphs between blank lines, or else lines; of the others, rows. A .tsv file has no quotes.
    """
    readers = {".txt": _paragraphs, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    for number, text in enumerate(readers.get(path.suffix.lower(), _csv_rows)(path, column), 1):
        if not isinstance(text, str | None):
            place = f"{'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"
            raise InvalidInput(f"{path}, {place}: the text is {str(text)[:80]!r} of type {type(text).__name__}.")
        if text and text.strip():
            yield text.strip()


def _column_of(path: Path, names: Sequence[str], column: str) -> str:
    wanted = [column] if column else ["text", "content"]
    if found := [name for name in wanted if name in names]:
        return found[0]
    raise InvalidInput(
        f"{path} has no column {' or '.join(map(repr, wanted))}; it has {', '.join(map(repr, names))}. Name the one that "
        f'holds the text after a "#", as in "{path}#{names[-1] if names else "text"}".'
    )


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends, of UTF-8 text, or of UTF-16 text that begins with a byte order mark."""
    with open(path, "rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        with open(path, encoding="utf-16" if utf16 else "utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    remedy = (
                        "Convert UTF-16 with `iconv -f UTF-16LE -t UTF-8`; from UTF-8 remove it with `tr -d '\\000'`."
                    )
                    raise InvalidInput(f"{path}, line {number} has a NUL byte. {remedy}")
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        fault = f"it has the byte {error.object[error.start]:#04x}"
        raise InvalidInput(f"{path} is not UTF-8 text ({fault}). Convert it: `iconv -f LATIN1 -t UTF-8`.") from error


def _paragraphs(path: Path, _: str) -> Iterator[str]:
    groups = (group for filled, group in itertools.groupby(_lines(path), bool) if filled)
    paragraphs = (group for group in groups if any(map(str.strip, group)))
    if len(list(itertools.islice(paragraphs, 2))) < 2:
        return itertools.chain.from_iterable(map(str.splitlines, _lines(path)))
    return ("\n".join(group) for filled, group in itertools.groupby(_lines(path), bool) if filled)


def _json_rows(path: Path, column: str) -> Iterator[Any]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise InvalidInput(f"{path}, line {number} is not JSON: {error}.") from error
        yield row[_column_of(path, list(row), column)] if isinstance(row, dict) else row


def _csv_rows(path: Path, column: str) -> Iterator[Any]:
    csv.field_size_limit(2**31 - 1)  # by default a longer field than 131,072 characters is an error
    options: Any = {"strict": True}
    if path.suffix.lower() == ".tsv":
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows, first = csv.reader((f"{line}\n" for line in _lines(path)), **options), 1
    try:
        names = next(rows, [])
        place = names.index(_column_of(path, names, column))
        first = rows.line_num + 1
        for row in rows:
            yield row[place] if place < len(row) else None
            first = rows.line_num + 1  # of the next row, which may span several lines
    except csv.Error as error:
        raise InvalidInput(f"{path}, the row from line {first} on is not CSV: {error}.") from error


def _parquet_rows(path: Path, column: str) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name = _column_of(path, file.schema_arrow.names, column)
            for batch in file.iter_batches(batch_size=1000, columns=[name]):
                yield from batch.column(name).to_pylist()
    except pyarrow.ArrowException as error:
        raise InvalidInput(f"{path} is not a parquet file, or is damaged: {str(error).splitlines()[0]}") from error
