"""How well a model predicts text: perplexity and bits per byte, with intervals, before and after training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import interval
from ssetools.loss import token_losses
from ssetools.models import device_of, evaluation_mode
from ssetools.progress import progress
from ssetools.text.windows import bos_ids, pack_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextScore:
    """The loss of a model on a text, window by window.

    Attributes:
        losses: FloatTensor [windows], summed negative log-likelihood of each window's tokens, in nats.
        tokens: LongTensor [windows], tokens predicted in each window.
        num_bytes: UTF-8 bytes of the predicted text.
    """

    losses: torch.Tensor
    tokens: torch.Tensor
    num_bytes: float

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token, each token weighing the same."""
        return math.exp(self.losses.sum().item() / self.tokens.sum().item())

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits over UTF-8 bytes: comparable between tokenizers, and roughly between languages."""
        return self.losses.sum().item() / math.log(2) / self.num_bytes

    def to_dict(self) -> dict:
        """Returns JSON-able numbers, the window losses included, so that intervals can be computed later."""
        return {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": int(self.tokens.sum()),
            "window_losses": [round(x, 4) for x in self.losses.tolist()],
            "window_tokens": self.tokens.tolist(),
        }


def score_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int = 256,
    max_tokens: int | None = None,
) -> TextScore:
    """Scores texts with a model.

    Windows never overlap, BOS opens each, and every token after it is predicted once (without a BOS token, the
    first of each window is not). The model works in the fixed mode of `evaluation_mode`.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        texts: Documents.
        window: Tokens per window, BOS included.
        max_tokens: Stop after the document that reaches this many tokens, so that no document is cut.

    Raises:
        InvalidInput: If there is no text, or no token with another before it.
        TypeError: For a single string, whose letters would be taken for documents.
    """
    return _score(model, tokenizer, [(texts, max_tokens)], window)[0]


def _score(
    model: nn.Module, tokenizer: Any, requests: Sequence[tuple[Sequence[str], int | None]], window: int
) -> list[TextScore]:
    """Scores several texts, each with its budget, in shared forward passes."""
    chosen = [within_budget(texts, tokenizer, budget) for texts, budget in requests]
    windows = [[x for x in pack_tokens(tokenizer, documents, window) if len(x) > 1] for documents, _ in chosen]
    if not all(windows):
        raise InvalidInput("There is nothing to predict: no token follows another. Give more text or a larger window.")
    sizes = [len(own) for own in windows]
    losses, tokens = (x.split(sizes) for x in window_losses(model, sum(windows, [])))
    scores = []
    for (documents, encoded), own_losses, own_tokens in zip(chosen, losses, tokens, strict=True):
        # Without BOS the first token of a window is not predicted: count the bytes of the predicted share alone.
        share = own_tokens.sum().item() / encoded
        scores.append(TextScore(own_losses, own_tokens, sum(len((x + "\n").encode()) for x in documents) * share))
    return scores


def window_losses(
    model: nn.Module, windows: Iterable[torch.Tensor], batch_size: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums the loss of each window of token ids (LongTensors [tokens]), `batch_size` of one length per forward pass.

    Returns:
        FloatTensor [windows] (float64), in nats, and LongTensor [windows], how many tokens of each were predicted, in the
        order given. Windows of a single token, which nothing precedes, are left out.
    """
    windows = [window for window in windows if len(window) > 1]
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
    losses, device = torch.zeros(len(windows), dtype=torch.float64), device_of(model)
    bar = progress(len(windows), "Scoring", "windows", show=processes.is_main())
    with bar, evaluation_mode(model), torch.no_grad():
        for _, group in itertools.groupby(order, key=lambda i: len(windows[i])):
            for places in torch.tensor(list(group)).split(batch_size):
                batch = torch.stack([windows[i] for i in places.tolist()])
                losses[places] = token_losses(model, batch.to(device)).sum(1).double().cpu()
                bar.update(len(places))
    return losses, torch.tensor([len(window) - 1 for window in windows], dtype=torch.long)


def within_budget(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
) -> tuple[list[str], int]:
    """Takes documents from the front until the budget is reached, and counts their tokens."""
    if isinstance(texts, str):
        raise TypeError("texts is a list of documents; for a single one give [text].")
    documents, total = [], 0
    for text in filter(str.strip, texts):
        if max_tokens is not None and total >= max_tokens:
            break
        documents.append(text)
        total += len(tokenizer(text + "\n", add_special_tokens=False)["input_ids"])
    if not documents:
        raise InvalidInput("There is no text to score: every document is empty.")
    return documents, total


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int = 256,
    max_tokens: int | None = None,
) -> float:
    """Returns the token-weighted perplexity of texts; arguments and errors as in `score_texts`."""
    return score_texts(model, tokenizer, texts, window, max_tokens).perplexity


def score_languages(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Mapping[str, Sequence[str]]],
    budgets: Mapping[str, int],
    window: int = 256,
) -> dict[str, dict[str, dict]]:
    """Scores every language on every genre of text.

    Args:
        model, tokenizer: A causal language model, with or without an adapter attached, and its tokenizer.
        texts: Documents by genre ("articles", "messages") and, within, by language.
        budgets: Largest number of tokens to score by language; "*" for the others.
        window: Tokens per window, BOS included.

    Returns:
        By genre and language: perplexity, bits_per_byte, tokens, window_losses and window_tokens. Errors are those of
        `score_texts`.
    """
    places = [(genre, lang) for genre, by_language in texts.items() for lang in by_language]
    requests = [(texts[genre][lang], budgets.get(lang, budgets["*"])) for genre, lang in places]
    scores: dict[str, dict[str, dict]] = {genre: {} for genre in texts}
    for (genre, lang), score in zip(places, _score(model, tokenizer, requests, window), strict=True):
        scores[genre][lang] = score.to_dict()
    return scores


def change(before: Mapping, after: Mapping, seed: int = 0) -> dict:
    """Compares two scores of the same text (dicts of `score_languages`), window by window.

    Returns `percent`, the change of perplexity in percent (negative is better), and `low` and `high`, its 95% interval over
    windows (`intervals.interval`), None with fewer than `MIN_UNITS` windows.
    """
    if before["window_tokens"] != after["window_tokens"]:
        raise InvalidInput("These scores are of different texts: their windows differ. Score the same text twice.")
    tokens, new, old = (
        torch.tensor(x, dtype=torch.float64)
        for x in (before["window_tokens"], after["window_losses"], before["window_losses"])
    )
    mean, *ends = interval((new - old)[None] / tokens, tokens, seed)
    low, high = (None if math.isnan(x) else 100 * math.expm1(x) for x in ends)
    return {"percent": 100 * math.expm1(mean), "low": low, "high": high}


def generate_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    samples: int = 1,
    seed: int | None = None,
    **sampling: Any,
) -> torch.Tensor:
    """Lets a model continue prompts (ids, BOS included), all in one batch, in the mode in which it is scored.

    Shorter prompts are padded on the left. With a seed, tokens are sampled at temperature 1, under more options of
    transformers' `generate` such as `top_k`; without one, the likeliest is taken each time. The same arguments give the
    same ids on the same machine, and the random state of the process stays as it was. Returns a LongTensor
    [prompts * samples, tokens], the continuations alone; one that ended early is padded on the right.
    """
    device = device_of(model)
    padding: Any = next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id) if x is not None), 0)
    rows = [torch.tensor(prompt, dtype=torch.long, device=device) for prompt in prompts]
    ids = pad_sequence(rows, True, padding, "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    sampled = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, **sampling}
    options = {"do_sample": False} if seed is None else sampled
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed or 0)
        options |= {"num_return_sequences": samples, "max_new_tokens": new_tokens, "pad_token_id": padding}
        texts = cast(Any, model).generate(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    return cast(torch.Tensor, texts)[:, ids.shape[1] :]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes a prompt, opened by BOS where the tokenizer has one."""
    return bos_ids(tokenizer) + tokenizer(text, add_special_tokens=False)["input_ids"]


def continue_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new_tokens: int = 40,
    seed: int | None = None,
    **sampling: Any,
) -> str:
    """Lets the model continue `prompt`; returns prompt and continuation. The last arguments are those of `generate_ids`."""
    ids = prompt_ids(tokenizer, prompt)
    (continuation,) = generate_ids(model, tokenizer, [ids], new_tokens, seed=seed, **sampling).tolist()
    return " ".join(str(tokenizer.decode(ids + continuation, skip_special_tokens=True)).split())
