"""Text by language and split, whatever its source, and which of it is for training and for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssetools.errors import IncompleteText, InvalidInput, NoTextInLanguage, TextUnavailable
from ssetools.files import digest_of, facts_of
from ssetools.languages import LANGUAGES, get_language
from ssetools.text import embedded
from ssetools.text.hub import HUB_CORPORA, HubText, files_digest
from ssetools.text.own import OWN_SUFFIXES, SPLITS, Normalization, OwnText, normalized

SENTENCES = tuple(name for name, corpus in HUB_CORPORA.items() if not corpus.streamed)
_OWN = "own"
_GENRES = {"udhr": "articles", "mediawiki": "messages", "sib200": "sentences", "flores": "sentences"}
_GENRES |= {"flores_plus": "sentences", "glotcc": "web pages", "fineweb2": "web pages", "wikipedia": "encyclopedia"}


@dataclass(frozen=True)
class Source:
    """One source of text, parsed from what a user typed; `str(source)` gives that back."""

    name: str  # of a corpus, or "own"
    folder: str = ""  # local copy, or path of your own text; "" for the published corpus
    column: str = ""  # column or key of your own text, where it is not "text" or "content"

    def __str__(self) -> str:
        if self.is_own:
            return f"{self.folder}#{self.column}" if self.column else self.folder
        return f"{self.name}:{self.folder}" if self.folder else self.name

    @property
    def is_own(self) -> bool:
        """Whether it is text of your own, not a named corpus."""
        return self.name == _OWN

    @property
    def genre(self) -> str:
        """Genre of the text, as metrics name it: "sentences"; for your own text the name of its file or folder."""
        return _GENRES.get(self.name, Path(self.folder).name)

    @property
    def streamed(self) -> bool:
        """Whether its training text may be larger than memory."""
        return self.name in HUB_CORPORA and HUB_CORPORA[self.name].streamed

    @property
    def multilingual(self) -> bool:
        """Whether the source has test text in many languages that is small enough to be loaded at once."""
        return not self.is_own and not self.streamed

    def check(self) -> None:
        """Raises `InvalidInput` if the name is unknown or the folder is not there."""
        if self.folder and not Path(self.folder).exists():
            known = f"use {', '.join(_GENRES)}, NAME:FOLDER, or a file or folder of {', '.join(OWN_SUFFIXES)} text"
            missing = f"Source '{self}' names a folder that does not exist: {self.folder}."
            raise InvalidInput(f"Unknown source '{self}': {known}." if self.is_own else missing)


def split_name(text: str) -> tuple[str, str]:
    """Splits "NAME:FOLDER", which names a local copy, into the two, and "NAME" into the name and ""."""
    name, _, folder = text.strip().partition(":")
    return name, folder


def parse_sources(text: str) -> tuple[Source, ...]:
    """Parses sources as users type them; a path that exists is one source, so it may contain "+" and "#"."""
    sources = []
    for part in [text] if text and Path(text).exists() else map(str.strip, text.split("+")):
        if not part:
            raise InvalidInput(f"A source of text is empty: name one of {', '.join(_GENRES)}, a file or a folder.")
        name, folder = split_name(part)
        if name in _GENRES:
            sources.append(Source(name, folder))
        else:
            path, _, column = (part, "", "") if Path(part).exists() else part.partition("#")
            if not path:
                raise InvalidInput(f"Source {part!r} names a column and no file: write FILE#{column or 'COLUMN'}.")
            sources.append(Source(_OWN, path, column))
    return tuple(sources)


def languages_in(source: str) -> list[str]:
    """Returns the codes of the languages that all given sources have: every one, of sources that no table lists."""
    listed = set().union(*(language.corpora for language in LANGUAGES))
    asked = {part.name for part in parse_sources(source)} & listed
    return [language.code for language in LANGUAGES if asked <= set(language.corpora)]


def load_texts(
    source: str, lang: str, split: str, max_bytes: int | None = None, normalize: Normalization = "NFC"
) -> list[str]:
    """Loads the documents of one language and split, in a fixed order, none empty.

    Args:
        source: "udhr" (articles of the declaration), "mediawiki" (interface messages); from the hub "sib200", "flores"
            or "flores_plus" (sentences, the last two for scoring only), "glotcc", "fineweb2" (web pages) or
            "wikipedia"; "NAME:FOLDER" for a local copy of one of these; or a path to text of your own, with the name of
            its text column after "#" where that is not "text" or "content". Several sources are joined with "+".
        lang: Language code, see `ssetools.get_language`. Your own text may be in any language.
        split: "train", "validation" or "test". Your own text is split by the names of its files and folders, or else
            80/10/10 by a hash of the document; of web pages and Wikipedia a tenth each of the first 2,000 documents is
            held out for validation and test.
        max_bytes: Stop with the document that reaches this many bytes of UTF-8, for each source; None takes all, which
            is refused for the training text of web pages and Wikipedia (`stream_texts` reads it lazily).
        normalize: Unicode normalization form, by default composed (NFC); None keeps the text as it is.

    Raises:
        InvalidInput: For an unknown language, source or split, and for empty, undecodable or damaged text.
        TextUnavailable: For a hub set that cannot be fetched, with the remedy.
    """
    texts: list[str] = []
    for part in parse_sources(source):
        if part.streamed and split == "train" and max_bytes is None:
            ways = f"stream_texts({str(part)!r}, {lang!r}) reads it lazily, load_texts(..., max_bytes=) a part of it"
            raise InvalidInput(f"Source '{part}' may have more training text than fits in memory: {ways}.")
        size = 0
        for _, text in keyed_documents(part, lang, split, normalize):
            texts.append(text)
            size += len(text.encode())
            if max_bytes is not None and size >= max_bytes:
                break
    return texts


def load_parallel(
    source: str, langs: Sequence[str], split: str, normalize: Normalization = "NFC"
) -> dict[str, list[str]]:
    """Loads the documents that every language has, by code, aligned: item *i* says the same in each language.

    Arguments and errors are those of `load_texts`, but it takes one source, and not a streamed one, whose documents have
    no common keys: "udhr" (by article), "mediawiki" (by message), "sib200", "flores" or "flores_plus" (by sentence).
    """
    part, *others = parse_sources(source)
    if others or part.streamed:
        raise InvalidInput(f"Parallel text comes from one source, and not a streamed one; got {source!r}.")
    documents = {lang: dict(keyed_documents(part, lang, split, normalize)) for lang in langs}
    keys = [key for key in documents[langs[0]] if all(key in keyed for keyed in documents.values())]
    return {lang: [keyed[key] for key in keys] for lang, keyed in documents.items()}


def keyed_documents(
    source: Source, lang: str, split: str, normalize: Normalization = "NFC"
) -> Iterator[tuple[str, str]]:
    """Yields the documents of one split, each with its key; at least one."""
    if split not in SPLITS:
        raise InvalidInput(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    source.check()
    rule = ""
    if source.is_own:
        own = OwnText(Path(source.folder), lang, source.column)
        keyed, rule = own.documents(split), own.rule
    elif source.name in HUB_CORPORA:
        keyed = HubText(source.name, source.folder, get_language(lang)).documents(split)
    else:
        read = embedded.declaration_articles if source.name == "udhr" else embedded.interface_messages
        keyed = read(get_language(lang), split, source.folder).items()
    key = None
    for key, text in keyed:
        yield key, normalized(text, normalize)
    if key is None:
        raise IncompleteText(f"Source '{source}' has no {split} text for {lang!r}. {rule}".rstrip())


def describe_source(source: str, lang: str, normalize: Normalization = "NFC") -> dict[str, str | None]:
    """Returns what identifies the text of `source`, for provenance in result files: revision, hashes, normalization."""
    facts: dict[str, str | None] = {"source": source, "normalize": normalize}
    for part in parse_sources(source):
        if part.is_own:
            revision = OwnText(Path(part.folder), lang, part.column).digest()
        elif part.name in HUB_CORPORA:
            revision = HubText(part.name, part.folder, get_language(lang)).revision()
        elif part.folder:
            revision = files_digest(Path(part.folder))
        else:
            folder = embedded.udhr_folder() if part.name == "udhr" else embedded.mediawiki_folder()
            revision = facts_of(folder)["revision"]
            if part.name == "mediawiki":
                facts["mediawiki_sha256"] = digest_of(embedded.cached_messages(get_language(lang)))
        facts[str(part)] = revision
    return facts


@dataclass(frozen=True)
class TextPlan:
    """Which text is for training, and which for scoring."""

    train: str  # source of the training and validation text
    genres: dict[str, str]  # source of test text, by name of its genre
    same_genre: tuple[str, ...]  # genres that the training text has
    reason: str  # why, in sentences

    @property
    def unseen_genre(self) -> str | None:
        """The genre that the training text does not have; None without one."""
        return next((genre for genre in self.genres if genre not in self.same_genre), None)


def default_source(lang: str | None = None) -> str:
    """Returns the default text: the declaration, and interface messages where apt and the language have them."""
    messages = lang is None or "mediawiki" in get_language(lang).corpora
    return "udhr+mediawiki" if messages and embedded.has_apt() else "udhr"


def plan_texts(source: str, other_text: str, lang: str) -> TextPlan:
    """Chooses training and test text so that, where possible, some test text is in an unseen genre.

    `source` is for training; "auto" takes the default sources and, where `other_text` ("sib200", "flores" or
    "flores_plus", or "NAME:FOLDER" for a local copy) is unavailable, leaves one out of training, to be the unseen genre.

    Raises:
        InvalidInput: For an unknown language or source, a missing or damaged local copy, and text of your own or an
            embedded one without a split that training or scoring needs.
    """
    other, *others = parse_sources(other_text)
    if others or other.name not in SENTENCES:
        raise InvalidInput(f"other_text is {other_text!r}: use one of {', '.join(SENTENCES)}, or NAME:FOLDER.")
    default = parse_sources(default_source(lang))
    train = default if source == "auto" else parse_sources(source)
    missing = f"{other} is training text." if other.name in {part.name for part in train} else ""
    try:
        next(keyed_documents(other, lang, "test"))
    except (TextUnavailable, NoTextInLanguage) as error:
        missing = missing or str(error)
        train = train[-1:] if source == "auto" else train
    spare = [part for part in default if part.name not in {x.name for x in train}]
    unseen = spare[:1] if missing else [other]
    genres: dict[str, str] = {}
    same_genre: tuple[str, ...] = ()
    for part in [*train, *unseen]:
        corpus = HUB_CORPORA.get(part.name)
        names = [part.genre, f"{part.genre} ({corpus.title if corpus else part})", f"{part.genre} ({part})"]
        genres[next((name for name in names if name not in genres), names[-1])] = str(part)
        same_genre = tuple(genres) if part in train else same_genre
        if corpus is None:  # corpora of the hub have every split
            for split in SPLITS if part in train else ("test",):
                next(keyed_documents(part, lang, split))
    reasons = [f"Text in an unseen genre: {unseen[0]}." if unseen else "There is no text in an unseen genre to score."]
    reasons += [missing] if missing else []
    reasons += [OwnText(Path(part.folder), lang, part.column).rule for part in train if part.is_own]
    return TextPlan("+".join(map(str, train)), genres, same_genre, " ".join(reasons))
