"""Corpora of the Hugging Face hub, or local copies in their layout, and whether the hub can be reached."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from ssetools.errors import IncompleteText, InvalidInput, NoTextInLanguage, TextUnavailable
from ssetools.files import digest_of
from ssetools.languages import Language
from ssetools.text.own import SPLITS, document_key, split_of

HEAD = 2000  # documents at the head of a streamed corpus from which held-out text is taken
_BATCH = 200
# Options of `datasets` to read a local copy again: its cache identifies a folder by its name only.
FRESH: dict[str, Any] = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"}
_LISTED = ("sib200", "flores")  # whose languages the table of languages knows


@dataclass(frozen=True)
class HubCorpus:
    """A data set of the hub. In `config` and `files`, "{code}" stands for the language's code in this corpus."""

    title: str
    repository: str
    splits: dict[str, str]  # its name for each of our splits that it has
    text: str = "text"  # column of the text; "" for the one that is named by the language's code
    config: str = "{code}"  # its configuration for a language on the hub
    files: str = ""  # where its files are in a local copy
    key: str = ""  # column that says which sentences are translations of each other; "" takes the row number
    streamed: bool = False  # whether it is too large to be loaded at once
    gated: bool = False  # whether its terms must be accepted on the hub


_WEB, _WEB_TEST = {"train": "train"}, {"train": "train", "test": "test"}
_FLORES, _ALL = {"validation": "dev", "test": "devtest"}, {split: split for split in SPLITS}
HUB_CORPORA = {
    "sib200": HubCorpus("SIB-200", "Davlan/sib200", _ALL, files="data/{code}/{split}.tsv", key="index_id"),
    "flores": HubCorpus("FLORES-200", "mteb/flores", _FLORES, "", "default", "data/{split}-*.parquet"),
    "flores_plus": HubCorpus(
        "FLORES+", "openlanguagedata/flores_plus", _FLORES, files="{split}/{code}.*", key="id", gated=True
    ),
    "glotcc": HubCorpus("GlotCC", "cis-lmu/GlotCC-V1", _WEB, "content", files="v1.0/{code}/*.parquet", streamed=True),
    "fineweb2": HubCorpus(
        "FineWeb-2", "HuggingFaceFW/fineweb-2", _WEB_TEST, files="data/{code}/{split}/*.parquet", streamed=True
    ),
    "wikipedia": HubCorpus("Wikipedia", "wikimedia/wikipedia", _WEB, files="{code}/{split}-*.parquet", streamed=True),
}
# FineWeb-2 has no English, which is in FineWeb; a sample of FineWeb has enough of it.
_ENGLISH_FINEWEB = HubCorpus("FineWeb", "HuggingFaceFW/fineweb", _WEB, config="sample-10BT", streamed=True)


class HubText:
    """A corpus of `HUB_CORPORA` in one language, from the hub or from a local copy in its layout (`folder`).

    Raises:
        NoTextInLanguage, InvalidInput, TextUnavailable: By all methods, if the corpus lacks the language, its local
            copy is damaged or incomplete, or it cannot be fetched.
    """

    def __init__(self, name: str, folder: str, language: Language):
        self.name, self.folder, self.language = name, folder, language
        english = name == "fineweb2" and language.code == "en" and not folder
        self.corpus = _ENGLISH_FINEWEB if english else HUB_CORPORA[name]

    def documents(self, split: str) -> Iterable[tuple[str, str]]:
        """Reads the documents of one split, each with its key; the training text of a streamed corpus lazily.

        A streamed corpus without such a split holds out a tenth of its first 2,000 documents, by their hash; of a split
        that it has, the first 2,000 are taken. A corpus for scoring has no training text, which is an `InvalidInput`.
        """
        corpus = self.corpus
        if not corpus.streamed:
            if split not in corpus.splits:
                raise InvalidInput(
                    f"{corpus.title} has no {split} text: it is for scoring ({', '.join(corpus.splits)}), not for training."
                )
            table = self.load(split)
            column = corpus.text or self.language.code_for(self.name)
            if column not in table.column_names:
                raise self._no_text(f"{self._files(split)} has no column {column!r}")
            keys = table[corpus.key] if corpus.key else range(len(table))
            return ((str(k), t.strip()) for k, t in zip(keys, table[column], strict=True) if t and t.strip())
        own = split in corpus.splits
        shards = self.shards(split if own else "train")
        keyed = ((document_key(text), text) for shard in shards for text in shard(0))
        if split == "train":
            held_out = self.held_out()
            return ((key, text) for key, text in keyed if text and key not in held_out)
        head = dict(itertools.islice(keyed, HEAD))
        return ((key, text) for key, text in head.items() if text and (own or split_of(key) == split))

    def held_out(self) -> dict[str, str]:
        """Returns the documents that a streamed corpus keeps for validation and test, by key."""
        return {key: text for split in ("validation", "test") for key, text in self.documents(split)}

    def shards(self, split: str = "train") -> list[Callable[[int], Iterator[str]]]:
        """Opens a streamed corpus: a function per file, which takes the number of documents to skip and yields the rest.

        Empty documents are among them, so that counts equal those of the file.
        """
        stream = self.load(split, streaming=True)
        count = stream.num_shards

        def documents(index: int, skip: int) -> Iterator[str]:
            shard, place = stream.shard(num_shards=count, index=index), skip
            try:
                for row in shard.skip(skip) if skip else shard:
                    place += 1
                    yield (row[self.corpus.text] or "").strip()
            except Exception as error:  # of many types, from the network or a damaged file
                where = f" after {place:,} documents of file {index + 1} of {count}"
                raise _unreadable(self.corpus, self.folder, self.name, self._files(split), error, where) from error

        return [functools.partial(documents, index) for index in range(count)]

    def revision(self) -> str:
        """Returns what identifies the text: repository and commit, or a digest of a local copy's files."""
        return revision_of(self.corpus, self.folder, self.name)

    def load(self, split: str, streaming: bool = False) -> Any:
        """Loads one split with all its columns: a `Dataset`, or an `IterableDataset` of a streamed corpus."""
        import datasets

        corpus, code, files = self.corpus, self.language.code_for(self.name), self._files(split)
        options: dict[str, Any] = {"split": corpus.splits[split], "streaming": streaming}
        if corpus.streamed:  # all of these are parquet; by default a batch is a row group, which can be a whole file
            options |= {"batch_size": _BATCH, "columns": [corpus.text]}
        if self.folder:
            if not any(Path(self.folder).glob(files)):
                raise self._no_text(f"{self.folder} has no {files}")
            options |= {"data_files": {corpus.splits[split]: files}} | FRESH
            if files.endswith(".tsv"):  # beside a card that names configurations, `datasets` would split at commas
                options["sep"] = "\t"
        else:
            # Known without the network, so that the training text of such a language does not depend on the network.
            if self.name in _LISTED and self.name not in self.language.corpora:
                raise self._no_text("by the table of languages")
            hub_reachable()
            options["name"] = corpus.config.format(code=code)
        with unavailable(corpus, self.folder, self.name, files):
            try:
                return datasets.load_dataset(self.folder or corpus.repository, **options)
            except ValueError as error:
                if self.folder or "BuilderConfig" not in str(error):
                    raise
        raise self._no_text(f"there is no {code}")

    def _files(self, split: str) -> str:
        return self.corpus.files.format(code=self.language.code_for(self.name), split=self.corpus.splits[split])

    def _no_text(self, where: str) -> InvalidInput:
        """The error for a language that the corpus lacks, or only this copy of it."""
        said = f"{self.corpus.title} has no text in {self.language.name} ({where})."
        if self.folder and self.name in self.language.corpora:
            return IncompleteText(f"{said} The corpus itself has it, so the copy is incomplete: copy these files too.")
        return NoTextInLanguage(said)


def revision_of(corpus: Any, folder: str, name: str) -> str:
    """Returns what identifies a set of the hub, given by title, repository and gating, as `HubCorpus` has them."""
    if folder:
        return f"{name} {files_digest(Path(folder))}"
    if not hub_reachable():
        return corpus.repository
    import huggingface_hub

    with unavailable(corpus, folder, name):
        return f"{corpus.repository}@{huggingface_hub.HfApi().dataset_info(corpus.repository).sha}"


def files_digest(folder: Path) -> str:
    """Returns a SHA-256 of the names, sizes and times of change of a folder's files, which identifies their content."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()]
    return digest_of(files)


@contextlib.contextmanager
def unavailable(corpus: Any, folder: str, name: str, files: str = "") -> Iterator[None]:
    """Turns any error into `IncompleteText` for a local copy, else `TextUnavailable`, with reason and remedy; is quiet."""
    try:
        with quiet("datasets"):
            yield
    except Exception as error:  # the hub's client raises many types of errors if it is unreachable
        raise _unreadable(corpus, folder, name, files, error) from error


def _unreadable(corpus: Any, folder: str, name: str, files: str, error: Exception, where: str = "") -> Exception:
    if folder:
        return IncompleteText(
            f"The local copy of {corpus.title} cannot be read{where} ({Path(folder, files).as_posix()}): "
            f"{_first_line(error.__cause__ or error)} Copy the files again."
        )
    terms = f"Accept its terms on its hub page (datasets/{corpus.repository}) and set HF_TOKEN"
    remedy = terms if corpus.gated else "Allow access to the Hugging Face hub"
    again = "Run again, and packing resumes where it stopped. " if where else ""
    return TextUnavailable(
        f"{corpus.title} cannot be loaded from the hub ({corpus.repository}){where}: {_first_line(error)} {again}{remedy}, "
        f'or name a local copy in its layout: "{name}:FOLDER".'
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".") + "."


@functools.cache
def hub_reachable() -> bool:
    """Says whether the hub can be reached; if not, its libraries are set to use their caches and not to retry."""
    import huggingface_hub.constants as hub

    if not hub.HF_HUB_OFFLINE and "https" not in getproxies():  # a proxy looks the name up itself
        try:
            socket.getaddrinfo(urlparse(hub.ENDPOINT).hostname, 443)
        except OSError:
            from datasets import config

            hub.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    return not hub.HF_HUB_OFFLINE


def on_hub(name: str) -> bool:
    """Says whether a model is in the hub's cache, or may be found on the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False
    return cached or ("/" in name and hub_reachable())


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silences the progress bars and advice of "transformers" or "datasets"; errors still raise."""
    log = importlib.import_module(f"{library}.utils.logging")
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
