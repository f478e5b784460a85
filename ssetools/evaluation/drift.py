"""How far training moved a model on text of its own: the divergence from the base, which needs no corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.perplexity import generate_ids, prompt_ids
from ssetools.files import kept, load_tensors, save_tensors
from ssetools.loss import Head, SoftmaxSums
from ssetools.models import body_of, device_of, evaluation_mode, model_source
from ssetools.text.sources import load_texts
from ssetools.text.windows import bos_ids
from ssetools.training.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT_TOKENS = 12


def sample_from_base(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
    path: str | Path | None = None,
    samples: int = 4,
    tokens: int = 128,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Samples text in each language from a model without an adapter, at temperature 1 from the whole vocabulary.

    A sample opens with BOS and the first words of an article of the declaration, so that the model knows which language to
    write; the next `tokens` are its own. A language has as many `samples`, 18 at most. The file `path` keeps them, and is
    replaced if it has samples of another model, other languages, sizes or seed.

    Returns:
        LongTensor [samples, opening + tokens] by code.
    """
    source = model_source(model)  # without the precision: a base in 8 bits and in 16 may share their samples
    settings = {"model": source["model"], "revision": source["revision"], "languages": list(languages)}
    settings |= {"samples": samples, "tokens": tokens, "seed": seed}
    prompts, opening = [], len(bos_ids(tokenizer)) + _PROMPT_TOKENS
    if path and kept(path, {"settings": settings}, on_change="remake"):
        cached, _ = load_tensors(path, "samples from the base", needed=list(languages))
        words = cast(Any, model).get_input_embeddings().weight.shape[0]
        for lang, ids in cached.items():
            fits = ids.dtype == torch.long and list(ids.shape) == [samples, opening + tokens]
            if not fits or not 0 <= int(ids.min()) <= int(ids.max()) < words:
                raise InvalidInput(f"{path} has no samples of this model in {lang!r}: delete it to make it again.")
        return {lang: cached[lang] for lang in languages}
    for lang in languages:
        texts = load_texts("udhr", lang, "train")[1 : samples + 1]  # 0 is the preamble: long and alike
        if len(texts) < samples:
            raise InvalidInput(f"The declaration opens {len(texts)} samples in {lang!r}; asked for {samples}.")
        for text in texts:
            prompts.append(prompt_ids(tokenizer, text)[:opening])
            if len(prompts[-1]) < opening:
                raise InvalidInput(
                    f"A sample opens with {_PROMPT_TOKENS} tokens, and an article in {lang!r} has fewer: {text!r}."
                )
    # Past an end of text too: drift is measured on as many tokens of every sample.
    drawn = generate_ids(model, tokenizer, prompts, tokens, seed=seed, top_k=0, eos_token_id=None).cpu()
    by_language = dict(zip(languages, torch.cat([torch.tensor(prompts), drawn], 1).split(samples), strict=True))
    if path:
        save_tensors(path, by_language, {"settings": settings})
    return by_language


def drift(model: nn.Module, samples: Mapping[str, torch.Tensor]) -> dict[str, dict]:
    """Measures the mean divergence KL(base || trained) per token of a model with its adapter on the base's own text.

    `samples` are from `sample_from_base` of the same model. Returns by language "kl", nats per token, and "per_sample",
    its value for each sample.
    """
    by_language = {}
    for lang, ids in samples.items():
        kl = token_divergence(model, ids)[:, _PROMPT_TOKENS:]  # only the tokens that the model drew
        per_sample = [round(x, 6) for x in kl.mean(1).tolist()]
        by_language[lang] = {"kl": kl.mean().item(), "per_sample": per_sample}
    return by_language


def token_divergence(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Computes KL(base || trained) of the next token at every position, over the whole vocabulary.

    `input_ids` is a LongTensor [batch, window]; the result is a FloatTensor [batch, window - 1], in nats.
    """
    adapter = Adapter.attached_to(model)
    ids = input_ids.to(device_of(model))
    with evaluation_mode(model), torch.no_grad():
        after, head = body_of(model)(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1), Head(model)
        with adapter.switched_off():
            before = body_of(model)(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
        base_head = Head(model)
        base_head.weight = adapter.base_value(base_head.weight)
        base, trained = (SoftmaxSums(len(before), before.device) for _ in range(2))
        gap = torch.zeros(len(before), 1, device=before.device)  # sum of exp(base logits) * (base - trained logits)
        for block in head.blocks(len(before)):
            base_logits, logits = base_head.logits(before, block), head.logits(after, block)
            difference = base_logits - logits
            powers, rescale = base.add(base_logits)
            gap.mul_(rescale).add_((powers * difference).sum(-1, keepdim=True))
            trained.add(logits)
        kl = gap / base.total - base.log_total() + trained.log_total()
    return kl.view(len(ids), -1).cpu()
