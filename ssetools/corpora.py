"""Text by language and split, whatever its source.

A source is a name ("udhr", "mediawiki", "sib200", "flores", "flores_plus", "glotcc", "fineweb2", "wikipedia"), a name
with a local copy ("sib200:FOLDER"), a file or folder of your own text (.txt, .jsonl, .parquet), or several of these
joined with "+".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch

from ssetools import embedded, wikitext
from ssetools.hub_corpora import HUB_CORPORA, held_out_documents, hub_documents, hub_revision, hub_shards
from ssetools.hub_corpora import TextUnavailable as TextUnavailable
from ssetools.languages import Language, get_language
from ssetools.own_text import OWN_SUFFIXES, SPLITS, own_documents, own_files, split_of
from ssetools.paths import cache_dir, write_json

SENTENCES = tuple(name for name, corpus in HUB_CORPORA.items() if not corpus.streamed)
STREAMED = tuple(name for name, corpus in HUB_CORPORA.items() if corpus.streamed)
SOURCES = ("udhr", "mediawiki", *SENTENCES)
"""Sources by name that have text of every kind of split in many languages and are small enough to load."""

_PIECE = 200_000  # characters tokenised together: enough to keep the tokenizer busy, little enough to forget
_UDHR_ARTICLES = {"train": range(0, 19), "validation": range(19, 22), "test": range(22, 31)}


def load_texts(source: str, lang: str, split: str, max_bytes: int | None = None) -> list[str]:
    """Loads the documents of one language and split.

    Args:
        source: "udhr" (articles of the declaration), "mediawiki" (interface messages); from the hub "sib200", "flores"
            or "flores_plus" (sentences, the last two for measuring only), "glotcc", "fineweb2" (web pages) or
            "wikipedia"; "NAME:FOLDER" for a local copy of one of these, or a path to text of your own. Several
            sources join with "+".
        lang: Language code, see `ssetools.get_language`. Own text may be in any language.
        split: "train", "validation" or "test". Own text without split files is split 80/10/10 by a hash of
            the document, so that the same document always falls in the same split; of web pages and Wikipedia a
            tenth each of the first 2,000 documents is held out for the two.
        max_bytes: Stop with the document that reaches this many bytes of UTF-8, for each source; None takes all. The
            training text of web pages and Wikipedia can be larger than memory: give a limit, or use `stream_texts`.

    Returns:
        Documents in a fixed order, none empty.

    Raises:
        ValueError: For an unknown language, source or split, and for empty or undecodable text.
        TextUnavailable: For a hub set that cannot be had from here, with the remedy.
    """
    found: list[str] = []
    for part in source.split("+"):
        size = 0
        for text in _texts(part.strip(), lang, split, max_bytes is not None):
            found.append(text)
            size += len(text.encode())
            if max_bytes is not None and size >= max_bytes:
                break
    return found


def _texts(source: str, lang: str, split: str, limited: bool) -> Iterable[str]:
    name, _, folder = source.partition(":")
    if name in STREAMED and split == "train" and limited:
        held_out = set(held_out_documents(name, folder, get_language(lang)).values())
        shards = hub_shards(name, folder, get_language(lang))
        return (text for shard in shards for text in shard(0) if text and text not in held_out)
    return _documents(source, lang, split).values()


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
    if not source:
        raise ValueError(f"The source of the text is empty: name one of {', '.join(SOURCES)}, a file or a folder.")
    name, _, folder = source.partition(":")
    if folder and name in (*SOURCES, *STREAMED) and not Path(folder).is_dir():
        raise ValueError(f"Source {source!r} names a folder that does not exist: {folder}.")
    if name == "udhr":
        found = _declaration(get_language(lang), split, folder)
    elif name == "mediawiki":
        found = _messages(get_language(lang), split, folder)
    elif name in HUB_CORPORA:
        found = hub_documents(name, folder, get_language(lang), split)
    elif Path(source).exists():
        files, by_hash = own_files(Path(source), lang, split)
        found = dict(own_documents(files, split, by_hash))
    else:
        raise ValueError(
            f"Unknown source {source!r}: use {', '.join((*SOURCES, *STREAMED))} (or NAME:FOLDER for a local copy), or "
            f"the path of an existing file or folder of {', '.join(OWN_SUFFIXES)} text."
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
            if kept["facts"] == facts and kept["sha256"] == digest_of(kept["messages"]):
                return kept["messages"]
            print(f"The parsed messages in {language.name} are damaged or outdated; parsing them again.", flush=True)
        except (ValueError, KeyError, TypeError):
            print(f"The parsed messages in {language.name} cannot be read; parsing them again.", flush=True)
    read = {p: json.loads((raw / f"{p}.json").read_text(encoding="utf-8")) for p in {code, "en"}}
    messages = wikitext.clean_messages(read[code], read["en"], language)
    write_json(parsed, {"facts": facts, "sha256": digest_of(messages), "messages": messages})
    return messages


def digest_of(texts) -> str:
    """Returns the SHA-256 of texts, in whatever lists and dicts they lie."""
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def describe_source(source: str, lang: str) -> dict[str, str]:
    """Returns what identifies the text of `source`, for provenance in result files: revision and hashes."""
    facts = {"source": source}
    for part in map(str.strip, source.split("+")):
        name, _, folder = part.partition(":")
        if part == "udhr":
            facts["udhr"] = embedded.manifest(embedded.udhr_folder())["revision"]
        elif part == "mediawiki":
            facts["mediawiki"] = embedded.manifest(embedded.mediawiki_folder())["revision"]
            facts["mediawiki_sha256"] = digest_of(_cached_messages(get_language(lang), _mediawiki_code(lang)))
        elif name in HUB_CORPORA:
            facts[part] = hub_revision(name, folder, get_language(lang))
        else:
            digest = hashlib.sha256()
            for number, text in enumerate(text for split in SPLITS for text in _maybe(part, lang, split)):
                digest.update(("\0" if number else "").encode() + text.encode())
            facts[part] = digest.hexdigest()
    return facts


def _mediawiki_code(lang: str) -> str:
    return get_language(lang).code_for("mediawiki")


def _maybe(source: str, lang: str, split: str) -> Iterator[str]:
    """The documents of one split, as they are read; nothing where a source has no such split."""
    try:
        if Path(source).exists():
            files, by_hash = own_files(Path(source), lang, split)
            yield from (text for _, text in own_documents(files, split, by_hash))
        else:
            yield from load_texts(source, lang, split)
    except ValueError:
        return


# --- tokens -----------------------------------------------------------------------------------------------------------


def encode_texts(tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Tokenises documents, each followed by a newline, without special tokens.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Documents, read as they are needed; empty ones are passed over.

    Yields:
        uint32 arrays [tokens], one for some documents at a time.

    Raises:
        ValueError: If there is no text.
    """
    if isinstance(texts, str):
        raise ValueError("pack_tokens takes a list of documents, not one string.")
    gathered: list[str] = []
    size = pieces = 0
    for text in texts:
        if text.strip():
            gathered.append(text + "\n")
            size += len(text)
        if size >= _PIECE:
            yield _encoded(tokenizer, gathered)
            gathered, size, pieces = [], 0, pieces + 1
    if gathered:
        yield _encoded(tokenizer, gathered)
    elif not pieces:
        raise ValueError("There is no text: every document is empty.")


def _encoded(tokenizer, texts: list[str]) -> np.ndarray:
    documents = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return np.concatenate([np.asarray(ids, dtype=np.uint32) for ids in documents])


def pack_tokens(
    tokenizer, texts: Iterable[str], window: int = 256, max_tokens: int | None = None
) -> list[torch.Tensor]:
    """Packs documents into windows of token ids, each opened by BOS where the tokenizer has one.

    Documents are tokenised once, separated by a newline, and cut without overlap; nothing is padded, dropped or
    decoded again. Gemma without BOS in front is another model, so no window goes without.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Documents.
        window: Tokens per window, BOS included.
        max_tokens: Stop once the windows hold this many tokens, BOS included; None takes all the text. Documents
            after that are not even read.

    Returns:
        LongTensors `[window]`; the last may be shorter, but holds at least one token besides BOS.

    Raises:
        ValueError: If there is no text.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = window - len(bos)
    pieces, count = [], 0
    wanted = None if max_tokens is None else max_tokens - len(bos) * -(-max_tokens // window)
    if wanted is not None and wanted < 1:
        raise ValueError(f"max_tokens must leave room for a token besides BOS; got {max_tokens}.")
    for piece in encode_texts(tokenizer, texts):
        pieces.append(piece)
        count += len(piece)
        if wanted is not None and count >= wanted:
            break
    ids = torch.from_numpy(np.concatenate(pieces)[:wanted].astype(np.int64))
    return [torch.cat([torch.tensor(bos, dtype=torch.long), piece]) for piece in ids.split(step)]
