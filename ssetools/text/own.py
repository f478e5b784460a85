"""Text of your own: .txt, .jsonl and .parquet files, read a document at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ssetools.errors import InvalidInput
from ssetools.languages import LANGUAGES

SPLITS = ("train", "validation", "test")
OWN_SUFFIXES = (".txt", ".jsonl", ".parquet")
_CODES = {language.code for language in LANGUAGES}
_REMEMBERED = 200_000


def own_files(path: Path, lang: str, split: str) -> tuple[list[Path], bool]:
    """Finds the files of one split.

    Args:
        path: A file, or a folder; a folder may hold one folder per language, and files or folders named after splits.
        lang: Language code.
        split: "train", "validation" or "test".

    Returns:
        The files in order, and whether their documents are still to be split by `split_of`.

    Raises:
        ValueError: If there is no file that can be read, or there are folders for other languages and none for this one.
    """
    if not path.is_dir():
        if path.suffix not in OWN_SUFFIXES:
            raise InvalidInput(f"Cannot read {path}: text files end in {', '.join(OWN_SUFFIXES)}.")
        return [path], True
    others = sorted(x.name for x in path.iterdir() if x.is_dir() and x.name in _CODES)
    if (path / lang).is_dir():
        path = path / lang
    elif others:
        raise InvalidInput(f"{path} has folders for {', '.join(others)}, and none for {lang}.")
    files = sorted(p for p in path.rglob("*") if p.suffix in OWN_SUFFIXES)
    if not files:
        raise InvalidInput(f"The folder {path} holds no {', '.join(OWN_SUFFIXES)} file.")
    splits = {p: _named_split(p, path) for p in files}
    if any(splits.values()):
        return [p for p in files if splits[p] == split], False
    return files, True


def own_documents(files: list[Path], split: str, by_hash: bool) -> Iterator[tuple[str, str]]:
    """Reads the documents of one split with a key each: file and number, or the hash that chose the split.

    A document that repeats one of the last 200,000 is left out where documents are split by hash, so what is held in
    memory does not grow with the text.

    Raises:
        ValueError: For empty, undecodable or malformed files.
    """
    if not by_hash:
        for path in files:
            for number, text in enumerate(read_documents(path)):
                yield f"{path.name}#{number}", text
        return
    seen: dict[str, None] = {}
    for path in files:
        for text in read_documents(path):
            key = hashlib.sha1(text.encode()).hexdigest()
            if key in seen:
                continue
            seen[key] = None
            if len(seen) > _REMEMBERED:
                del seen[next(iter(seen))]
            if split_of(key) == split:
                yield key, text
    if not seen:
        raise InvalidInput(f"{files[0]} is empty: there is no text in it.")


def split_of(key: str) -> str:
    """Returns the split of a document: 80/10/10 by a hash of its key, the same on every machine."""
    tenth = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def files_digest(files: list[Path]) -> str:
    """Returns a SHA-256 of the files' names, sizes and times of change, which stands for their content."""
    facts = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(files)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read_documents(path: Path) -> Iterator[str]:
    """Reads the documents of one file: paragraphs between blank lines, else lines (.txt); rows (.jsonl, .parquet)."""
    rows = {".txt": _paragraphs, ".jsonl": _json_lines, ".parquet": _table_rows}[path.suffix](path)
    for row in rows:
        text = _text_of(path, row).strip()
        if text:
            yield text


def _named_split(path: Path, root: Path) -> str:
    """The split that a file, or a folder that it lies in, is named after; "" for none."""
    names = (path.stem, *path.relative_to(root).parts[:-1])
    return next((s for s in SPLITS for x in names if x == s or x.startswith((f"{s}-", f"{s}_", f"{s}."))), "")


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends. Read as bytes, so that an undecodable byte can be told by its place in the file."""
    start = 0
    with open(path, "rb") as file:
        for raw in file:
            try:
                line = raw.decode("utf-8-sig" if start == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"{path} is not UTF-8 text (byte {start + error.start} is {raw[error.start]:#04x}). "
                    "Convert it, e.g. iconv -f LATIN1 -t UTF-8."
                ) from error
            yield line.rstrip("\r\n")
            start += len(raw)


def _paragraphs(path: Path) -> Iterator[str]:
    if not _has_blank_line(path):
        for line in _lines(path):
            yield from line.splitlines()
        return
    gathered: list[str] = []
    for line in _lines(path):
        if line:
            gathered.append(line)
        elif gathered:
            yield "\n".join(gathered)
            gathered = []
    yield "\n".join(gathered)


def _has_blank_line(path: Path) -> bool:
    """Says whether an empty line stands between two lines of text."""
    text = blank = False
    for line in _lines(path):
        if line.strip():
            if blank:
                return True
            text = True
        elif text and not line:
            blank = True
    return False


def _json_lines(path: Path) -> Iterator[object]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{path}, line {number} is not JSON: {error}.") from error


def _table_rows(path: Path) -> Iterator[object]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        columns = [c for c in ("text", "content") if c in file.schema_arrow.names][:1]
        for batch in file.iter_batches(batch_size=1000, columns=columns or None):
            yield from batch.to_pylist()


def _text_of(path: Path, row) -> str:
    if isinstance(row, str):
        return row
    for column in ("text", "content"):
        if isinstance(row, dict) and isinstance(row.get(column), str):
            return row[column]
    raise InvalidInput(f"{path} has a row without a 'text' or 'content' column: {str(row)[:80]}.")
