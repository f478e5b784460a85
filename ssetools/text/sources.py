"""Text by language and split, whatever its source.

A source is a name ("udhr", "mediawiki", "sib200", "flores", "flores_plus", "glotcc", "fineweb2", "wikipedia"), a name
with a local copy ("sib200:FOLDER"), a file or folder of your own text (.txt, .jsonl, .parquet), or several of these
joined with "+".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssetools.errors import InvalidInput, TextUnavailable
from ssetools.files import digest_of, manifest
from ssetools.languages import get_language
from ssetools.text import embedded
from ssetools.text.hub import HUB_CORPORA, held_out_documents, hub_documents, hub_revision, hub_shards
from ssetools.text.own import OWN_SUFFIXES, SPLITS, own_documents, own_files

SENTENCES = tuple(name for name, corpus in HUB_CORPORA.items() if not corpus.streamed)
STREAMED = tuple(name for name, corpus in HUB_CORPORA.items() if corpus.streamed)
SOURCES = ("udhr", "mediawiki", *SENTENCES)
"""Sources by name that have text of every kind of split in many languages and are small enough to load."""


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
        raise InvalidInput(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    if not source:
        raise InvalidInput(f"The source of the text is empty: name one of {', '.join(SOURCES)}, a file or a folder.")
    name, _, folder = source.partition(":")
    if folder and name in (*SOURCES, *STREAMED) and not Path(folder).is_dir():
        raise InvalidInput(f"Source {source!r} names a folder that does not exist: {folder}.")
    if name == "udhr":
        found = embedded.declaration_articles(get_language(lang), split, folder)
    elif name == "mediawiki":
        found = embedded.interface_messages_of(get_language(lang), split, folder)
    elif name in HUB_CORPORA:
        found = hub_documents(name, folder, get_language(lang), split)
    elif Path(source).exists():
        files, by_hash = own_files(Path(source), lang, split)
        found = dict(own_documents(files, split, by_hash))
    else:
        raise InvalidInput(
            f"Unknown source {source!r}: use {', '.join((*SOURCES, *STREAMED))} (or NAME:FOLDER for a local copy), or "
            f"the path of an existing file or folder of {', '.join(OWN_SUFFIXES)} text."
        )
    if not found:
        raise InvalidInput(f"Source {source!r} has no {split} text for {lang!r}.")
    return found


def describe_source(source: str, lang: str) -> dict[str, str]:
    """Returns what identifies the text of `source`, for provenance in result files: revision and hashes."""
    facts = {"source": source}
    for part in map(str.strip, source.split("+")):
        name, _, folder = part.partition(":")
        if part == "udhr":
            facts["udhr"] = manifest(embedded.udhr_folder())["revision"]
        elif part == "mediawiki":
            facts["mediawiki"] = manifest(embedded.mediawiki_folder())["revision"]
            facts["mediawiki_sha256"] = digest_of(embedded.cached_messages(get_language(lang), _mediawiki_code(lang)))
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


# --- text_plan ---


_KINDS = {"udhr": "articles", "mediawiki": "messages", "sib200": "sentences", "flores": "sentences"}
_KINDS |= {"flores_plus": "sentences", "glotcc": "web pages", "fineweb2": "web pages", "wikipedia": "encyclopedia"}


@dataclass(frozen=True)
class TextPlan:
    """Which text trains, and which measures.

    Attributes:
        train: Source of the training and validation text.
        kinds: Source by name of the kind of test text.
        same_kind: Names of the kinds that the training text is of.
        reason: One sentence on why it is so.
    """

    train: str
    kinds: dict[str, str]
    same_kind: tuple[str, ...]
    reason: str

    @property
    def other_kind(self) -> str | None:
        """Name of the kind of text that training never saw, or None."""
        return next((kind for kind in self.kinds if kind not in self.same_kind), None)


def default_source() -> str:
    """Returns the default text: declaration and messages where apt is at hand, the declaration elsewhere."""
    return "udhr+mediawiki" if embedded.has_apt() else "udhr"


def plan_texts(source: str = "auto", other_text: str = "sib200", lang: str = "en") -> TextPlan:
    """Decides what to train on and what to measure on, so that some test text is of a kind never trained on.

    Args:
        source: Training source, or "auto".
        other_text: Where text of another kind comes from: "sib200", "flores" or "flores_plus" (the hub), or one of them
            with a local copy: "sib200:FOLDER".
        lang: Language to try it with.

    Returns:
        The plan. With "auto" and text of another kind at hand, both embedded sources train; without it, one of them is
        left out of training, to be the text of another kind.
    """
    try:
        load_texts(other_text, lang, "test")
        other, missing = {"sentences": other_text}, ""
    except TextUnavailable as error:
        other, missing = {}, str(error)
    if source == "auto":
        source = default_source()
        if not other and source == "udhr+mediawiki":
            kinds = {"messages": "mediawiki", "articles": "udhr"}
            title = HUB_CORPORA[other_text.split(":")[0]].title
            reason = f"{title} cannot be reached, so the declaration is left out of training, to measure on."
            return TextPlan("mediawiki", kinds, ("messages",), reason)
    source = "+".join(part.strip() for part in source.split("+"))
    if other_text.split(":")[0] in {part.split(":")[0] for part in source.split("+")}:
        other, missing = {}, f"{other_text} is what trains."
    kinds: dict[str, str] = {}
    for part in source.split("+"):
        name = part.split(":")[0]
        kind = _KINDS.get(name, Path(part).name)
        kinds[_apart(kind, part, kinds)] = part
    same = tuple(kinds)
    other = {_apart(kind, part, kinds): part for kind, part in other.items()}
    if not other:
        spare = [x for x in default_source().split("+") if x not in source.split("+")]
        other = {_KINDS[spare[0]]: spare[0]} if spare else {}
    if other:
        reason = f"Text of another kind: {next(iter(other.values()))}, never trained on."
    else:
        reason = f"There is no text of another kind to measure on. {missing}"
    return TextPlan(source, {**kinds, **other}, same, reason)


def _apart(kind: str, part: str, kinds: dict[str, str]) -> str:
    """The kind's name, with the source's where two sources are of one kind: they are measured apart."""
    name = part.split(":")[0]
    return f"{kind} ({HUB_CORPORA[name].title if name in HUB_CORPORA else part})" if kind in kinds else kind
