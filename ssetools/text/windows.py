"""Packed windows of tokens: in memory, or in a file that is written once from a stream and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock

from ssetools.errors import InvalidInput
from ssetools.files import cache_dir, digest_of, kept, read_json, reading, write_json, writing
from ssetools.progress import progress
from ssetools.text.streams import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH, _CHARACTERS = 64, 200_000  # of documents that are tokenised together: fast, and little memory
_FORMAT = 2


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids that open every window: the tokenizer's BOS, or none if it has none."""
    return [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Tokenises documents, each followed by a newline, without special tokens: uint32 arrays of several documents."""
    if isinstance(texts, str):
        raise InvalidInput("pack_tokens takes a list of documents, not one string.")
    batch = None
    for batch in _batches(text + "\n" for text in texts if text.strip()):
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        yield np.concatenate([np.asarray(ids, dtype=np.uint32) for ids in encoded])
    if batch is None:
        raise InvalidInput("There is no text: every document is empty.")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if len(batch) == _BATCH or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pack_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], window: int = 256, max_tokens: int | None = None
) -> list[torch.Tensor]:
    """Packs documents into windows of token ids, each opened by BOS where the tokenizer has one.

    Documents are separated by a newline and cut without overlap; nothing is padded or dropped. Gemma without BOS gives
    other probabilities.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Documents; if all are empty, it is an `InvalidInput`.
        window: Tokens per window, BOS included.
        max_tokens: Stop once the windows hold this many tokens, BOS included; later documents are not read.

    Returns:
        LongTensors `[window]`; the last may be shorter, but holds at least one token besides BOS.
    """
    bos = bos_ids(tokenizer)
    wanted = None if max_tokens is None else max_tokens - len(bos) * -(-max_tokens // window)
    if wanted is not None and wanted < 1:
        raise InvalidInput(f"max_tokens must leave room for a token besides BOS; got {max_tokens}.")
    pieces, count = [], 0
    for piece in encode_texts(tokenizer, texts):
        pieces.append(piece)
        count += len(piece)
        if wanted is not None and count >= wanted:
            break
    ids = torch.from_numpy(np.concatenate(pieces)[:wanted].astype(np.int64))
    return [torch.cat([torch.tensor(bos, dtype=torch.long), piece]) for piece in ids.split(window - len(bos))]


class PackedWindows:
    """A sequence of full windows, LongTensors [window], each opened by BOS where the tokenizer has one.

    `tokens` are a uint32 array [tokens], in memory or mapped from a file; BOS, which `window` counts, is not among them.
    """

    def __init__(self, tokens: np.ndarray, bos: list[int], window: int):
        self.tokens, self.window, self._bos, self._step = tokens, window, bos, window - len(bos)

    def __len__(self) -> int:
        return len(self.tokens) // self._step

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no window {index}: there are {len(self)}.")
        piece = self.tokens[index * self._step : (index + 1) * self._step]
        return torch.tensor([*self._bos, *piece.tolist()], dtype=torch.long)

    def digest(self) -> str:
        """Returns a SHA-256 of the tokens, BOS and the length of windows."""
        sha256 = hashlib.sha256(f"{self._bos} {self.window}".encode())
        if isinstance(self.tokens, np.memmap):  # whose pages would count as this process's memory
            with open(str(self.tokens.filename), "rb") as file:
                return hashlib.file_digest(file, lambda: sha256).hexdigest()
        sha256.update(self.tokens.tobytes())
        return sha256.hexdigest()


def pack_in_memory(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], window: int) -> PackedWindows:
    """Packs documents into windows in memory, 4 bytes per token; raises `InvalidInput` if there is no text."""
    return PackedWindows(np.concatenate(list(encode_texts(tokenizer, texts))), bos_ids(tokenizer), window)


def pack_stream(tokenizer: PreTrainedTokenizerBase, stream: TextStream, window: int, max_windows: int) -> PackedWindows:
    """Packs a stream into up to `max_windows` full windows on disk, once: 4 bytes per token in the cache, none in memory.

    A packing that was stopped resumes after its last finished block, with the same tokens.
    """
    wanted = max_windows * (window - len(bos_ids(tokenizer)))
    facts = {"format": _FORMAT, **stream.facts, "tokenizer": _tokenizer_digest(tokenizer), "wanted": wanted}
    name = digest_of(facts)[:24]
    folder = cache_dir() / "tokens" / name
    if not _complete(folder, facts):  # asked without the lock too, since a shared cache may be read-only
        with writing(folder), FileLock(folder.parent / f"{name}.lock"):
            if not _complete(folder, facts):
                _write(tokenizer, stream, wanted, folder, facts)
    return PackedWindows(np.memmap(folder / "tokens.bin", np.uint32, "r"), bos_ids(tokenizer), window)


def _complete(folder: Path, facts: dict) -> bool:
    about, tokens = kept(folder / "about.json", facts, on_change="remake"), folder / "tokens.bin"
    return about is not None and tokens.is_file() and tokens.stat().st_size / 4 == about.get("tokens")


def _write(tokenizer: PreTrainedTokenizerBase, stream: TextStream, wanted: int, folder: Path, facts: dict) -> None:
    if (folder / "about.json").exists():  # of damaged tokens
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    recorded, tokens = folder / "state.json", folder / "tokens.bin"
    state = {"tokens": 0, "documents": 0, "lines_left_out": 0, "position": None}
    if recorded.is_file():
        with reading(recorded, "the state of a packing"):
            state = read_json(recorded)
            position, sources = state["position"], len(stream.facts["revisions"])
            counts = [position["turn"], state["tokens"], position["block"], state["documents"], state["lines_left_out"]]
            right = [len(place) for place in position["places"]] == [2] * sources and counts[0] < sources
            right &= all(type(x) is int and x >= 0 for x in sum(position["places"], counts))
            if not right or counts[1] > (tokens.stat().st_size / 4 if tokens.exists() else 0):
                raise InvalidInput(f"it does not fit {tokens.name}; delete both to pack the text again")
        print(f"Packing of {stream.source} resumes after {state['tokens']:,} tokens.", flush=True)
    left_out = state["lines_left_out"] - stream.overlap.lines
    bar = progress(wanted, f"Packing {stream.source} ({stream.lang})", "tokens", state["tokens"])
    with bar, writing(tokens), open(tokens, "ab") as file:
        file.truncate(4 * state["tokens"])  # a stopped packing may have written more than it recorded
        for texts, position in stream.blocks(state["position"]) if state["tokens"] < wanted else ():
            for piece in encode_texts(tokenizer, texts) if texts else ():
                piece = piece[: wanted - state["tokens"]]
                file.write(piece.tobytes())
                state["tokens"] += len(piece)
                bar.update(len(piece))
                if state["tokens"] == wanted:
                    break
            file.flush()
            state |= {"documents": state["documents"] + len(texts), "position": position}
            state["lines_left_out"] = left_out + stream.overlap.lines
            write_json(recorded, state)
            if state["tokens"] == wanted:
                break
    if not state["tokens"]:
        raise InvalidInput(f"There is no training text in {stream.source} for {stream.lang!r}.")
    write_json(folder / "about.json", {**facts, **state})  # marks the tokens as complete
    recorded.unlink(missing_ok=True)
    left_out = f"{state['lines_left_out']:,} lines that evaluation text has too were left out"
    print(f"Packed {state['documents']:,} documents, {state['tokens']:,} tokens; {left_out}.", flush=True)


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    whole = fast.to_str() if fast else json.dumps(tokenizer.get_vocab(), sort_keys=True) + type(tokenizer).__name__
    return hashlib.sha256(whole.encode()).hexdigest()
