"""Text by language and split, whatever its source.

A source is a name ("udhr", "mediawiki", "sib200"), a name with a local copy ("sib200:FOLDER"), a file or folder of
your own text (.txt, .jsonl, .parquet), or several of these joined with "+".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import torch

from ssetools import embedded, wikitext
from ssetools.hub import hub_reachable
from ssetools.languages import Language, get_language
from ssetools.paths import cache_dir, write_json

SPLITS = ("train", "validation", "test")
SOURCES = ("udhr", "mediawiki", "sib200")
DEFAULT_SIB200 = "Davlan/sib200"
_UDHR_ARTICLES = {"train": range(0, 19), "validation": range(19, 22), "test": range(22, 31)}
_OWN_SUFFIXES = (".txt", ".jsonl", ".parquet")


class TextUnavailable(RuntimeError):
    """A source that exists but cannot be reached from here; the message holds the reason and the remedy."""


def load_texts(source: str, lang: str, split: str) -> list[str]:
    """Loads the documents of one language and split.

    Args:
        source: "udhr" (articles of the declaration), "mediawiki" (interface messages), "sib200" (FLORES sentences;
            for measuring only), "NAME:FOLDER" for a local copy of one of these, or a path to text of your own.
            Several sources join with "+".
        lang: Language code, see `ssetools.get_language`. Own text may be in any language.
        split: "train", "validation" or "test". Own text without split files is split 80/10/10 by a hash of
            the document, so that the same document always falls in the same split.

    Returns:
        Documents in a fixed order, none empty.

    Raises:
        ValueError: For an unknown language, source or split, and for empty or undecodable text.
        TextUnavailable: For a hub set that cannot be had from here, with the remedy.
    """
    return [text for part in source.split("+") for text in _documents(part.strip(), lang, split).values()]


def load_parallel(source: str, langs: Sequence[str], split: str) -> dict[str, list[str]]:
    """Loads the documents that every language has, aligned: item *i* says the same in each language.

    Args:
        source: "udhr" (by article), "mediawiki" (by message key) or "sib200" (by sentence), or a local copy.
        langs: Language codes.
        split: "train", "validation" or "test".

    Returns:
        Documents by code; the lists are of equal length.
    """
    documents = {lang: _documents(source, lang, split) for lang in langs}
    shared = set.intersection(*(set(found) for found in documents.values()))
    keys = [key for key in documents[langs[0]] if key in shared]
    return {lang: [found[key] for key in keys] for lang, found in documents.items()}


def _documents(source: str, lang: str, split: str) -> dict[str, str]:
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    name, _, folder = source.partition(":")
    readers = dict(zip(SOURCES, (_declaration, _messages, _sib200), strict=True))
    if name in readers:
        if folder and not Path(folder).is_dir():
            raise ValueError(f"Source {source!r} names a folder that does not exist: {folder}.")
        found = readers[name](get_language(lang), split, folder)
    elif Path(source).exists():
        found = _own_text(Path(source), lang, split)
    else:
        raise ValueError(
            f"Unknown source {source!r}: use {', '.join(readers)} (or NAME:FOLDER for a local copy), or the path of "
            f"an existing file or folder of {', '.join(_OWN_SUFFIXES)} text."
        )
    if not found:
        raise ValueError(f"Source {source!r} has no {split} text for {lang!r}.")
    return found


# --- the declaration --------------------------------------------------------------------------------------------


class _DeclarationParser(HTMLParser):
    """Collects the paragraphs of the preamble (number 0) and of each article."""

    def __init__(self):
        super().__init__()
        self.articles: dict[int, list[str]] = {}
        self._article: int | None = None
        self._in_paragraph = False

    def handle_starttag(self, tag, attrs):
        if tag == "header":
            self._article = 0
        elif tag == "article":
            self._article = int(dict(attrs)["data-number"])
        elif tag == "p" and self._article is not None:
            self._in_paragraph = True
            self.articles.setdefault(self._article, []).append("")

    def handle_endtag(self, tag):
        if tag == "p":
            self._in_paragraph = False
        elif tag in ("header", "article"):
            self._article = None

    def handle_data(self, data):
        if self._in_paragraph:
            self.articles[self._article][-1] += data


def _declaration(language: Language, split: str, folder: str) -> dict[str, str]:
    path = Path(folder or embedded.udhr_folder()) / f"{language.code_for('udhr')}.html"
    if not path.is_file():
        raise ValueError(f"The declaration has no text in {language.name} ({path.name}).")
    parser = _DeclarationParser()
    parser.feed(path.read_text(encoding="utf-8"))
    missing = set(range(31)) - set(parser.articles)
    if missing:
        raise ValueError(f"The declaration in {language.name} lacks the articles {sorted(missing)} (0: preamble).")
    texts = {n: "\n".join(" ".join(p.split()) for p in parser.articles[n] if p.strip()) for n in range(31)}
    return {f"article-{n}": texts[n] for n in _UDHR_ARTICLES[split] if texts[n]}


# --- interface messages -----------------------------------------------------------------------------------------


def _messages(language: Language, split: str, folder: str) -> dict[str, str]:
    code = language.code_for("mediawiki")
    if folder:
        found = embedded.read_i18n(Path(folder))
        texts = wikitext.clean_messages(found.get(code, {}), found.get("en", {}), language)
    else:
        texts = _cached_messages(language, code)
    return {key: text for key, text in texts.items() if split_of(key) == split}


def _cached_messages(language: Language, code: str) -> dict[str, str]:
    raw = embedded.mediawiki_folder()
    path = raw / f"{code}.json"
    if not path.is_file():
        raise ValueError(f"MediaWiki has no messages in {language.name} ({path.name}).")
    # Parsing wikitext takes seconds, so its result is kept beside the raw text, with a hash that proves it whole.
    facts = {"revision": embedded.manifest(raw)["revision"], "cleaning": wikitext.CLEANING_VERSION}
    parsed = cache_dir() / "mediawiki-parsed" / f"{code}.json"
    if parsed.is_file():
        try:
            kept = json.loads(parsed.read_text(encoding="utf-8"))
            if kept["facts"] == facts and kept["sha256"] == _text_sha256(kept["messages"]):
                return kept["messages"]
            print(f"The parsed messages in {language.name} are damaged or outdated; parsing them again.", flush=True)
        except (ValueError, KeyError, TypeError):
            print(f"The parsed messages in {language.name} cannot be read; parsing them again.", flush=True)
    read = {p: json.loads((raw / f"{p}.json").read_text(encoding="utf-8")) for p in {code, "en"}}
    messages = wikitext.clean_messages(read[code], read["en"], language)
    write_json(parsed, {"facts": facts, "sha256": _text_sha256(messages), "messages": messages})
    return messages


def _text_sha256(messages: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def describe_source(source: str, lang: str) -> dict[str, str]:
    """Returns what identifies the text of `source`, for provenance in result files: revision and hashes."""
    facts = {"source": source}
    for part in source.split("+"):
        if part == "udhr":
            facts["udhr"] = embedded.manifest(embedded.udhr_folder())["revision"]
        elif part == "mediawiki":
            facts["mediawiki"] = embedded.manifest(embedded.mediawiki_folder())["revision"]
            facts["mediawiki_sha256"] = _text_sha256(_cached_messages(get_language(lang), _mediawiki_code(lang)))
        elif part == "sib200":
            facts["sib200"] = DEFAULT_SIB200
        else:
            texts = [text for split in SPLITS for text in _maybe(part, lang, split)]
            facts[part] = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return facts


def _mediawiki_code(lang: str) -> str:
    return get_language(lang).code_for("mediawiki")


def _maybe(source: str, lang: str, split: str) -> list[str]:
    try:
        return load_texts(source, lang, split)
    except ValueError:
        return []  # a source need not have every split


# --- SIB-200 ----------------------------------------------------------------------------------------------------


def _sib200(language: Language, split: str, folder: str) -> dict[str, str]:
    import datasets

    if not folder:
        hub_reachable()
    code = language.code_for("sib200")
    if folder and not (Path(folder) / "data" / code).is_dir():
        raise ValueError(f"The SIB-200 copy in {folder} has no data/{code} ({language.name}).")
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        table = datasets.load_dataset(folder or DEFAULT_SIB200, code, split=split)
    except Exception as error:  # the hub client raises a dozen types for "not reachable"; the cause stays attached
        raise TextUnavailable(
            f"SIB-200 cannot be loaded from {folder or 'the hub (' + DEFAULT_SIB200 + ')'}: {str(error).strip()[:200]} "
            'Allow access to the Hugging Face hub, or name a local copy in its layout: "sib200:FOLDER".'
        ) from error
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    return {f"{row['index_id']}": row["text"].strip() for row in table if row["text"].strip()}


# --- your own text ----------------------------------------------------------------------------------------------


def _own_text(path: Path, lang: str, split: str) -> dict[str, str]:
    if path.is_dir():
        # A folder may hold one folder per language, and files named after splits.
        path = path / lang if (path / lang).is_dir() else path
        files = sorted(p for p in path.rglob("*") if p.suffix in _OWN_SUFFIXES)
        if not files:
            raise ValueError(f"The folder {path} holds no {', '.join(_OWN_SUFFIXES)} file.")
        if any(_named_split(p) for p in files):
            files = [p for p in files if _named_split(p) == split]
            return {f"{p.name}#{i}": t for p in files for i, t in enumerate(_read_documents(p))}
    elif path.suffix in _OWN_SUFFIXES:
        files = [path]
    else:
        raise ValueError(f"Cannot read {path}: text files end in {', '.join(_OWN_SUFFIXES)}.")
    texts = dict.fromkeys(text for p in files for text in _read_documents(p))
    if not texts:
        raise ValueError(f"{path} is empty: there is no text in it.")
    return {digest: t for t in texts if split_of(digest := hashlib.sha1(t.encode()).hexdigest()) == split}


def _named_split(path: Path) -> str:
    return next((s for s in SPLITS if path.stem == s or path.stem.startswith((f"{s}-", f"{s}_", f"{s}."))), "")


def _read_documents(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows: Iterable = pyarrow.parquet.read_table(path).to_pylist()
    else:
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}). "
                "Convert it, e.g. iconv -f LATIN1 -t UTF-8."
            ) from error
        if path.suffix == ".txt":
            rows = content.split("\n\n") if "\n\n" in content.strip() else content.splitlines()
        else:
            rows = [_json_line(path, n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip()]
    return [text.strip() for text in (_text_of(path, row) for row in rows) if text.strip()]


def _json_line(path: Path, number: int, line: str):
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error


def _text_of(path: Path, row) -> str:
    if isinstance(row, str):
        return row
    for column in ("text", "content"):
        if isinstance(row, dict) and isinstance(row.get(column), str):
            return row[column]
    raise ValueError(f"{path} has a row without a 'text' or 'content' column: {str(row)[:80]}.")


def split_of(key: str) -> str:
    """Returns the split of a document: 80/10/10 by a hash of its key, the same on every machine."""
    tenth = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


# --- tokens -----------------------------------------------------------------------------------------------------


def pack_tokens(tokenizer, texts: Iterable[str], window: int = 256) -> list[torch.Tensor]:
    """Packs documents into windows of token ids, each opened by BOS where the tokenizer has one.

    Documents are tokenised once, separated by a newline, and cut without overlap; nothing is padded, dropped or
    decoded again. Gemma without BOS in front is another model, so no window goes without.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Documents.
        window: Tokens per window, BOS included.

    Returns:
        LongTensors `[window]`; the last may be shorter, but holds at least one token besides BOS.

    Raises:
        ValueError: If there is no text.
    """
    if isinstance(texts, str):
        raise ValueError("pack_tokens takes a list of documents, not one string.")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("There is no text: every document is empty.")
    encoded = tokenizer([text + "\n" for text in texts], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([i for document in encoded for i in document], dtype=torch.long)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    opening = torch.tensor(bos, dtype=torch.long)
    return [torch.cat([opening, piece]) for piece in ids.split(window - len(bos)) if len(piece) + len(bos) > 1]
