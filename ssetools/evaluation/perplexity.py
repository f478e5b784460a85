"""How well a model predicts text: perplexity and bits per byte, with intervals, before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import interval
from ssetools.loss import token_losses
from ssetools.models import device_of, evaluation_mode
from ssetools.text.windows import bos_ids, pack_tokens


@dataclass(frozen=True)
class TextScore:
    """The loss of a model on one text, window by window.

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
    tokenizer,
    texts: Sequence[str],
    window: int = 256,
    batch_size: int = 4,
    max_tokens: int | None = None,
) -> TextScore:
    """Scores texts with a model.

    Windows never overlap, BOS opens each, and every token after it is predicted once (without a BOS token, the
    first of each window is not). The model works in the fixed mode of `evaluation_mode`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Documents.
        window: Tokens per window, BOS included.
        batch_size: Windows per forward pass.
        max_tokens: Stop after the document that reaches this many tokens, so that no document is cut.

    Returns:
        The score.

    Raises:
        ValueError: If there is no text.
        TypeError: For a single string, whose letters would pass for documents.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a list of documents; for a single one give [text].")
    kept, seen = _within_budget(list(texts), tokenizer, max_tokens)
    windows = pack_tokens(tokenizer, kept, window)
    device = device_of(model)
    losses, tokens = [], []
    with evaluation_mode(model), torch.no_grad():
        full = [w for w in windows if len(w) == window]
        batches = [torch.stack(full[i : i + batch_size]) for i in range(0, len(full), batch_size)]
        batches += [w[None] for w in windows if len(w) < window and len(w) > 1]
        for batch in batches:
            found = token_losses(model, batch.to(device)).cpu()
            losses += found.sum(1).tolist()
            tokens += [found.shape[1]] * len(found)
    # Without BOS the first token of a window is unpredicted: count the bytes of the predicted share alone.
    share = sum(tokens) / seen
    num_bytes = sum(len((text + "\n").encode()) for text in kept) * share
    return TextScore(torch.tensor(losses, dtype=torch.float64), torch.tensor(tokens), num_bytes)


def _within_budget(texts: list[str], tokenizer, max_tokens: int | None) -> tuple[list[str], int]:
    """Takes documents from the front until the budget is reached, and counts their tokens."""
    kept, total = [], 0
    for text in texts:
        if not text.strip():
            continue
        if max_tokens is not None and total >= max_tokens:
            break
        kept.append(text)
        total += len(tokenizer(text + "\n", add_special_tokens=False)["input_ids"])
    if not kept:
        raise InvalidInput("There is no text to score: every document is empty.")
    return kept, total


def perplexity(model: nn.Module, tokenizer, texts: Sequence[str], **options) -> float:
    """Returns the token-weighted perplexity of texts; options as in `score_texts`."""
    return score_texts(model, tokenizer, texts, **options).perplexity


def score_languages(
    model: nn.Module, tokenizer, texts: Mapping[str, Mapping[str, Sequence[str]]], budgets: Mapping[str, int], **options
) -> dict:
    """Scores every language on every kind of text.

    Args:
        model: A causal language model, with or without an adapter attached.
        tokenizer: Its tokenizer.
        texts: Documents by kind ("articles", "messages") and, within, by language.
        budgets: Largest number of tokens to score by language; "*" for the others.
        **options: As in `score_texts`.

    Returns:
        By kind and language: perplexity, bits_per_byte, tokens, window_losses and window_tokens.
    """
    return {
        kind: {
            lang: score_texts(
                model, tokenizer, documents, max_tokens=budgets.get(lang, budgets["*"]), **options
            ).to_dict()
            for lang, documents in by_language.items()
        }
        for kind, by_language in texts.items()
    }


def change(before: Mapping, after: Mapping, seed: int = 0) -> dict:
    """Compares two scores of the same text, window by window, with the interval of `intervals.interval`.

    Args:
        before: A score's dict, from `score_languages`.
        after: The same text scored by the trained model.
        seed: Seed of the bootstrap.

    Returns:
        `percent`: change of perplexity in percent (negative is better); `low`, `high`: its 95% interval over windows.
        Fewer than `MIN_UNITS` windows are too few to resample, and the interval is None.
    """
    if before["window_tokens"] != after["window_tokens"]:
        raise InvalidInput("These scores are of different texts: their windows differ.")
    tokens, ours, theirs = (
        torch.tensor(x, dtype=torch.float64)
        for x in (before["window_tokens"], after["window_losses"], before["window_losses"])
    )
    mean, *ends = interval((ours - theirs)[None] / tokens, tokens, seed)
    low, high = (None if math.isnan(x) else 100 * math.expm1(x) for x in ends)
    return {"percent": 100 * math.expm1(mean), "low": low, "high": high}


def continue_text(model: nn.Module, tokenizer, prompt: str, new_tokens: int = 40) -> str:
    """Lets the model go on from `prompt`, taking the likeliest token each time; returns prompt and continuation."""
    device = device_of(model)
    opening = bos_ids(tokenizer)
    ids = opening + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    inputs = torch.tensor([ids], device=device)
    with evaluation_mode(model), torch.no_grad():
        ids = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id,
        )
    return " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
