"""Counts, for each language, the tokens on which each FFN neuron fires."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.files import digest, kept, load_tensors, reading, save_tensors
from ssetools.models import (
    body_of,
    check_base_model,
    device_of,
    evaluation_mode,
    is_sharded,
    model_mismatch,
    model_source,
)
from ssetools.neurons.ffn import FFNBlock, find_ffn_blocks
from ssetools.progress import progress
from ssetools.text.windows import bos_ids, pack_tokens

_SAVE_SECONDS = 10


@dataclass
class ActivationProfile:
    """Activation counts of a model for several languages.

    Attributes:
        counts: LongTensor [languages, layers, neurons]: tokens on which the neuron's activation was > 0.
        tokens: LongTensor [languages]: tokens counted (BOS is not one of them).
        languages: Codes, in the order of the first axis.
        metadata: Model, revision, source and window of the counting.
    """

    counts: torch.Tensor
    tokens: torch.Tensor
    languages: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts, self.tokens = torch.as_tensor(self.counts), torch.as_tensor(self.tokens)
        self.languages = list(self.languages)
        if self.counts.ndim != 3 or not len(self.counts) == len(self.tokens) == len(self.languages):
            raise InvalidInput(
                f"counts must be [languages, layers, neurons] with a token count for each language; got counts "
                f"{list(self.counts.shape)}, tokens {list(self.tokens.shape)}, {len(self.languages)} languages."
            )
        if len(set(self.languages)) < len(self.languages):
            raise InvalidInput(f"A profile names each language once; got {self.languages}.")
        if (self.tokens <= 0).any():
            empty = [x for x, n in zip(self.languages, self.tokens.tolist(), strict=True) if n <= 0]
            raise InvalidInput(f"No tokens were counted for {empty}.")

    def probabilities(self) -> torch.Tensor:
        """Returns activation probabilities, FloatTensor [languages, layers, neurons] in float32."""
        return self.counts.float() / self.tokens.float()[:, None, None]

    def subset(self, languages: Sequence[str]) -> ActivationProfile:
        """Returns the profile of some languages, in the order asked for; a ValueError names those that it lacks."""
        missing = [language for language in languages if language not in self.languages]
        if missing:
            raise InvalidInput(f"The profile has no {missing}; it has {self.languages}. Profile them too, and add.")
        rows = [self.languages.index(language) for language in languages]
        return ActivationProfile(self.counts[rows], self.tokens[rows], list(languages), self.metadata)

    def __add__(self, other: ActivationProfile) -> ActivationProfile:
        """Merges shards of the same languages, or joins different languages of the same model."""
        shape, others = list(self.counts.shape[1:]), list(other.counts.shape[1:])
        differs = f"[layers, neurons] are {shape} and {others}" if shape != others else ""
        if differs := differs or model_mismatch(self.metadata, other.metadata):
            raise InvalidInput(f"These profiles are of different models: {differs}.")
        languages, shared = self.languages, [x for x in self.languages if x in other.languages]
        if set(languages) == set(other.languages):
            other = other.subset(languages)
            counts, tokens = self.counts + other.counts, self.tokens + other.tokens
        elif shared:
            raise InvalidInput(f"Profiles add when they have the same languages or none in common; both have {shared}.")
        else:
            languages = languages + other.languages
            counts, tokens = torch.cat([self.counts, other.counts]), torch.cat([self.tokens, other.tokens])
        return ActivationProfile(counts, tokens, languages, dict(self.metadata))

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file, atomically."""
        tensors = {"counts": self.counts, "tokens": self.tokens}
        return save_tensors(path, tensors, {"languages": " ".join(self.languages), "metadata": self.metadata})

    @classmethod
    def load(cls, path: str | Path) -> ActivationProfile:
        """Reads what `save` wrote."""
        tensors, metadata = load_tensors(path, "an activation profile", ("counts", "tokens"))
        with reading(path, "an activation profile"):
            languages = metadata["languages"].split()
            return cls(tensors["counts"], tensors["tokens"], languages, metadata.get("metadata", {}))


def profile_languages(
    model: nn.Module,
    tokenizer: Any,
    texts: Mapping[str, Sequence[str]],
    tokens_per_language: int | None = None,
    window: int = 256,
    batch_size: int = 4,
    path: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ActivationProfile:
    """Counts on how many tokens each FFN neuron's activation is above zero, for each language.

    Every language gets exactly the same number of tokens, in windows spread evenly over its text. BOS opens each
    window and is not counted: it is the same token in every language. Counts are exact integers.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        texts: Documents by language code.
        tokens_per_language: Token budget (a ValueError if a language has less text); None takes all that the language with
            the least text has.
        window: Tokens per window, BOS included.
        batch_size: Windows per forward pass.
        path: Where to save the profile. A stopped count resumes from `<path>.partial.safetensors`.
        metadata: Facts to keep with the counts, such as the corpus.

    Returns:
        The profile, in the order of `texts`.
    """
    check_base_model(model, "Profiling")
    blocks = find_ffn_blocks(model)
    packed = {lang: pack_tokens(tokenizer, documents, window) for lang, documents in texts.items()}
    opening = len(bos_ids(tokenizer))
    have = {lang: sum(len(w) - opening for w in windows) for lang, windows in packed.items()}
    budget = tokens_per_language or min(have.values())
    short = {lang: n for lang, n in have.items() if n < budget}
    if short:
        raise InvalidInput(f"Too little text for {budget} tokens per language: {short}. Lower the budget or add text.")
    plans = {lang: _spread(windows, budget, opening) for lang, windows in packed.items()}
    text = digest(torch.cat([window for windows in plans.values() for window in windows]))
    # With more processes than windows, a process has none of some languages, or of all.
    plans = {lang: windows[processes.state().process_index :: processes.count()] for lang, windows in plans.items()}
    facts = {**model_source(model), "window": window, **(metadata or {})}
    shape = (len(plans), len(blocks), blocks[0].num_neurons)
    share = f"-{processes.state().process_index}of{processes.count()}" if processes.count() > 1 else ""
    settings = {**facts, "languages": list(plans), "budget": budget, "text": text}
    state = _PartialProfile(f"{path}{share}.partial.safetensors" if path else None, shape, settings)
    total, done = sum(map(len, plans.values())), sum(state.windows_done)
    bar = progress(total, "Profiling", "windows", done, processes.is_main())
    with bar, counting(model) as count:
        for row, windows in enumerate(plans.values()):
            batches = _batches(windows[state.windows_done[row] :], batch_size)
            for batch in processes.in_step(batches, is_sharded(model)):
                if batch is None:  # only to take part in the gathering that the others' passes need
                    count(torch.zeros(1, 2, dtype=torch.long), opening)
                    continue
                state.add(row, count(torch.stack(batch), opening), len(batch), sum(len(w) - opening for w in batch))
                bar.update(len(batch))
    counts, tokens = (processes.total(x.to(device_of(model))).cpu() for x in (state.counts, state.tokens))
    profile = ActivationProfile(counts, tokens, list(plans), facts)
    if path:
        if processes.is_main():
            profile.save(path)
        processes.state().wait_for_everyone()
        if state.path:
            state.path.unlink(missing_ok=True)
    return profile


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[Callable[[torch.Tensor, int], torch.Tensor]]:
    """Gives a function that counts fired activations, while the `with` block runs. The head is never run.

    It takes a LongTensor [batch, window] of token ids, and how many tokens at the start of each window are not counted,
    and returns a LongTensor [layers, neurons]: positions on which the neuron fired.
    """
    blocks, body, device = find_ffn_blocks(model), body_of(model), device_of(model)
    counts = torch.zeros(len(blocks), blocks[0].num_neurons, dtype=torch.long, device=device)
    shape, opening = torch.Size(), 0

    def count(input_ids: torch.Tensor, skipped: int) -> torch.Tensor:
        nonlocal shape, opening
        shape, opening = input_ids.shape, skipped
        counts.zero_()
        body(input_ids=input_ids.to(device), use_cache=False)
        return counts.cpu().clone()

    def add(layer: int, block: FFNBlock, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        # Some families (OPT) flatten batch and window into one axis.
        counts[layer] += _count_true(block.fired(output).view(*shape, -1)[:, opening:])

    with contextlib.ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            hook = block.inputs[0].module.register_forward_hook(functools.partial(add, layer, block))
            hooks.callback(hook.remove)
        # A sharded model keeps what it gathers for the training to come, which cannot use tensors of inference mode.
        with torch.no_grad(), torch.inference_mode(not is_sharded(model)), evaluation_mode(model):
            yield count


def _count_true(fired: torch.Tensor) -> torch.Tensor:
    """Counts what is true in each column of a BoolTensor [windows, tokens, columns], exactly.

    On a CPU eight columns are added at once, as the bytes of 64-bit words that overflow after 255 rows: several times
    faster.
    """
    if fired.device.type != "cpu" or fired.shape[2] % 8 or fired.stride()[1:] != (fired.shape[2], 1):
        return fired.sum((0, 1))
    words = [part.sum(0) for window in fired for part in window.view(torch.int64).split(255)]
    return torch.stack(words).view(torch.uint8).sum(0)


def _spread(windows: list[torch.Tensor], budget: int, opening: int) -> list[torch.Tensor]:
    """Takes windows at even distances, `budget` tokens in total without the opening ones; the last is cut to fit."""
    needed = min(len(windows), -(-budget // (len(windows[0]) - opening)))
    spread = [number * len(windows) // needed for number in range(needed)]
    taken = []
    # The others are needed where the last window, a short one, is chosen.
    for number in dict.fromkeys([*spread, *range(len(windows))]):
        taken.append(windows[number][: budget + opening])
        budget -= len(taken[-1]) - opening
        if not budget:
            break
    return taken


def _batches(windows: list[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Groups neighbours of equal length, so that no window is padded."""
    for _, equal in itertools.groupby(windows, len):
        while batch := list(itertools.islice(equal, size)):
            yield batch


class _PartialProfile:
    """Counts so far, saved every few seconds; a later call with the same settings resumes from them."""

    def __init__(self, path: str | None, shape: tuple[int, int, int], settings: dict[str, Any]):
        self.path, self.settings = Path(path) if path else None, settings
        self.counts = torch.zeros(shape, dtype=torch.long)
        self.tokens = torch.zeros(shape[0], dtype=torch.long)
        self.windows_done = [0] * shape[0]
        self.saved = time.monotonic()
        if self.path is None or not self.path.exists():
            return
        facts = kept(self.path, {"settings": settings}, on_change="remake")
        if facts is None:
            print(f"Restarting the profile: {self.path} has other settings or counts another text.", flush=True)
            return
        tensors, _ = load_tensors(self.path, "a partial profile", ("counts", "tokens"))
        with reading(self.path, "a partial profile"):
            done, new = facts["windows_done"], {"counts": self.counts, "tokens": self.tokens}
            if [type(x) for x in done] != [int] * len(done) or len(done) != len(self.windows_done) or min(done) < 0:
                raise InvalidInput(f"its windows_done are {done!r:.60}")
            if wrong := [x for x in new if (tensors[x].dtype, tensors[x].shape) != (torch.long, new[x].shape)]:
                raise InvalidInput(f"its {wrong} have another shape or type")
        self.counts, self.tokens, self.windows_done = tensors["counts"], tensors["tokens"], done
        print(f"Resuming the profile in {self.path} after {int(self.tokens.sum())} tokens.", flush=True)

    def add(self, row: int, counts: torch.Tensor, windows: int, tokens: int) -> None:
        self.counts[row] += counts
        self.tokens[row] += tokens
        self.windows_done[row] += windows
        if self.path and time.monotonic() - self.saved > _SAVE_SECONDS:
            tensors = {"counts": self.counts, "tokens": self.tokens}
            save_tensors(self.path, tensors, {"settings": self.settings, "windows_done": self.windows_done})
            self.saved = time.monotonic()
