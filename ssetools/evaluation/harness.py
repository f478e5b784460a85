"""lm-eval on a model in memory: BOS opens every text, 8-bit layers work in the fixed mode, and no logits are stored."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ssetools.evaluation.task_sets import Request
from ssetools.loss import Head, SoftmaxSums, check_head
from ssetools.models import body_of, evaluation_mode
from ssetools.text.windows import bos_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Otherwise it warns every time of what is intended here: a model object, and no chat template.
logging.getLogger("lm_eval").setLevel(logging.ERROR)

_Base: Any = HFLM  # whose attributes the decorator that registers it hides from type checkers


class InMemoryLM(_Base):
    """A loaded model with the interface of lm-eval.

    `HFLM` leaves BOS to the tokenizer, cuts it off texts that are too long, and takes the softmax of every position
    over the whole vocabulary in the model's own dtype: with 262,144 words a gigabyte for every thousand tokens, and
    in bfloat16 rounding errors as large as the differences that decide a question. Here only the tokens that are
    scored go through the head, in float32 sums over blocks of the vocabulary, as in `score_texts`; texts that occur
    in several questions are computed once. `cut` counts texts that were too long and lost their beginning.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        self.opening = bos_ids(tokenizer)
        self.cut = 0

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Tokenises a text, with BOS in front unless `add_special_tokens` is False; a long one loses its beginning."""
        ids = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        if add_special_tokens is not False:
            ids = self.opening + ids
        return ids if left_truncate_len is None else self._shortened(ids, left_truncate_len)

    def _shortened(self, ids: list[int], length: int) -> list[int]:
        """Cuts ids on the left, after the BOS that opens them."""
        if len(ids) <= length:
            return ids
        self.cut += 1
        opening = len(self.opening)
        return ids[:opening] + ids[opening - length :]

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenises texts, each opened by BOS, and pads them: ids and attention mask, LongTensors [texts, longest]."""
        encoded = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        rows = [torch.tensor(ids, dtype=torch.long) for ids in encoded]
        ids = pad_sequence(rows, True, self.tokenizer.pad_token_id, padding_side)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        check_head(self.model)
        places_of = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            places_of[tuple(self._shortened((context + continuation)[:-1], self.max_length))].append(place)
        texts = sorted(places_of, key=len, reverse=True)  # batches of similar length, the longest first
        answers: list = [None] * len(requests)
        for start in tqdm(range(0, len(texts), self.batch_size), desc="Scoring", disable=disable_tqdm):
            batch = texts[start : start + self.batch_size]
            places = [places_of[ids] for ids in batch]
            labels = [[requests[place][2] for place in row] for row in places]
            for place, answer in zip(sum(places, []), self._score(batch, labels), strict=True):
                answers[place] = answer
        return answers

    @torch.no_grad()
    def _score(self, texts: Sequence[tuple], labels: Sequence[Sequence]) -> list[tuple[float, bool]]:
        """Scores the last tokens of each text against one or more continuations that end it."""
        # Padded on the right, which no token of a causal model attends to.
        ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        states = body_of(self.model)(input_ids=ids.to(self.device), use_cache=False)[0]
        spans = [(row, span) for row, own in enumerate(labels) for span in own]
        hidden = torch.cat([states[row, len(texts[row]) - len(span) : len(texts[row])] for row, span in spans])
        wanted = torch.tensor([token for _, span in spans for token in span], device=hidden.device)
        head, sums = Head(self.model), SoftmaxSums(len(wanted), hidden.device)
        likeliest = torch.zeros_like(wanted)
        for block in head.blocks(len(wanted)):
            logits = head.logits(hidden, block)
            value, index = logits.max(-1)
            likeliest = torch.where(value > sums.largest.squeeze(-1), index + block.start, likeliest)
            sums.add(logits)
        scores = head.label_logits(hidden, wanted, head.rows(wanted, hidden.dtype)) - sums.log_total().squeeze(-1)
        sizes = [len(span) for _, span in spans]
        greedy = (likeliest == wanted).split(sizes)
        return [(x.sum().item(), bool(y.all())) for x, y in zip(scores.split(sizes), greedy, strict=True)]


@contextlib.contextmanager
def in_memory(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Iterator[InMemoryLM]:
    """Wraps a model for lm-eval while the block runs, and leaves model and tokenizer as they were."""
    padding = tokenizer.pad_token
    with evaluation_mode(model):  # restores the mode that HFLM's eval() changes
        try:
            lm = InMemoryLM(model, tokenizer, batch_size)
            with evaluation_mode(model):
                yield lm
        finally:
            tokenizer.pad_token = padding


def ask(lm: InMemoryLM, tasks: dict[str, Any], request: Request) -> dict[str, list[dict]]:
    """Runs tasks of lm-eval, by name, as the request says, and returns the logged samples of each: a dict per question."""
    for task in tasks.values():
        task.set_config("num_fewshot", (task.config.num_fewshot or 0) if request.shots is None else request.shots)
        task.set_fewshot_seed(request.seed)
    results = lm_eval.evaluate(cast(Any, lm), cast(Any, {"tasks": tasks}), limit=request.limit, bootstrap_iters=0)
    return cast(Any, results)["samples"]
