"""How far training moved a model on text of its own: the divergence from the base, which needs no corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import load_tensors, save_tensors
from ssetools.loss import Head, SoftmaxSums
from ssetools.models import body_of, device_of, evaluation_mode, model_source
from ssetools.text.sources import load_texts
from ssetools.text.windows import bos_ids
from ssetools.training.adapter import Adapter

_PROMPT_TOKENS = 12


def sample_from_base(
    model: nn.Module,
    tokenizer,
    languages: Sequence[str],
    path: str | Path | None = None,
    samples: int = 4,
    tokens: int = 128,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Samples text from a model in each language, once, at temperature 1.

    A sample opens with BOS and the first words of an article of the declaration, so that the model knows which
    language is spoken; what follows is the model's own.

    Args:
        model: A causal language model; nothing may be attached to it.
        tokenizer: Its tokenizer.
        languages: Codes.
        path: File in which the samples are kept, and found again when model, languages and sizes are the same.
        samples: Samples for each language.
        tokens: Tokens to draw for each sample.
        seed: Seed of the draw.

    Returns:
        LongTensor [samples, opening + tokens] by code.

    Raises:
        ValueError: For more samples than the declaration's training split has articles.
    """
    about = model_source(model)  # a base in 8 bits and in 16 may share their samples
    wanted = {"model": about["model"], "revision": about["revision"], "languages": list(languages)}
    wanted |= {"samples": samples, "tokens": tokens, "seed": seed}
    if path and Path(path).exists():
        found, facts = load_tensors(path, "samples from the base")
        if facts.get("settings") == wanted:
            return {lang: found[lang] for lang in languages}
    opening = bos_ids(tokenizer)
    prompts = []
    for lang in languages:
        texts = load_texts("udhr", lang, "train")[1 : samples + 1]  # 0 is the preamble: long and alike
        if len(texts) < samples:
            raise InvalidInput(f"The declaration opens {len(texts)} samples in {lang!r}; asked for {samples}.")
        for text in texts:
            prompts.append(opening + tokenizer(text, add_special_tokens=False)["input_ids"][:_PROMPT_TOKENS])
    drawn = _draw(model, torch.tensor(prompts, device=device_of(model)), tokens, seed)
    by_language = dict(zip(languages, drawn.cpu().split(samples), strict=True))
    if path:
        save_tensors(path, by_language, {"settings": wanted})
    return by_language


def _draw(model, ids, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    cache = None
    with evaluation_mode(model), torch.inference_mode():
        for _ in range(tokens):
            output = model(input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            shares = output.logits[:, -1].float().softmax(-1).cpu()
            ids = torch.cat([ids, torch.multinomial(shares, 1, generator=generator).to(ids.device)], 1)
    return ids


def drift(model: nn.Module, samples: Mapping[str, torch.Tensor]) -> dict[str, dict]:
    """Measures the mean divergence KL(base || trained) per token on the base's own text.

    Args:
        model: The model, with its trained adapter attached.
        samples: Token ids by language, from `sample_from_base` of the same model.

    Returns:
        By language: "kl", nats per token, and "per_sample", its value for each sample.
    """
    found = {}
    for lang, ids in samples.items():
        kl = token_divergence(model, ids)[:, _PROMPT_TOKENS:]  # what the model drew, not what it was given
        per_sample = [round(x, 6) for x in kl.mean(1).tolist()]
        found[lang] = {"kl": kl.mean().item(), "per_sample": per_sample}
    return found


def token_divergence(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Computes KL(base || trained) of the next token's distribution at every position, over the whole vocabulary.

    Args:
        model: A causal language model with an adapter attached.
        input_ids: LongTensor [batch, window].

    Returns:
        FloatTensor [batch, window - 1], in nats.
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
            powers, rescale = base.add(base_logits)
            gap.mul_(rescale).add_((powers * (base_logits - logits)).sum(-1, keepdim=True))
            trained.add(logits)
        kl = gap / base.total - base.log_total() + trained.log_total()
    return kl.view(len(ids), -1).cpu()
