"""Cross-entropy over chunks of tokens, so that logits [tokens, vocabulary] never exist at once.

With vocabularies of 128k to 262k words, logits are the largest tensor of a small run. The head is frozen, so the
gradient with respect to the hidden states is all that training needs: it is computed chunk by chunk together with
the loss, and the logits of a chunk are gone before the next.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.nn import functional as F

_CHUNK_BYTES = 128 * 2**20
_CHECKED: weakref.WeakSet = weakref.WeakSet()


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its language-model head."""
    return getattr(model, model.base_model_prefix)


def head_logits(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Computes logits from the body's last hidden states, with the scaling or soft cap that the model applies.

    Args:
        model: A causal language model.
        hidden: [..., hidden].

    Returns:
        Logits [..., vocabulary].
    """
    logits = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_losses(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Computes the negative log-likelihood of each token after the first, without gradients.

    Args:
        model: A causal language model.
        input_ids: LongTensor [batch, window], nothing padded.

    Returns:
        FloatTensor [batch, window - 1], in nats.
    """
    _check_head(model)
    with torch.no_grad():
        hidden = body_of(model)(input_ids=input_ids, use_cache=False)[0][:, :-1].flatten(0, 1)
        labels = input_ids[:, 1:].flatten()
        losses = [
            F.cross_entropy(head_logits(model, h).float(), y, reduction="none")
            for h, y in zip(hidden.split(_chunk(model)), labels.split(_chunk(model)), strict=True)
        ]
    return torch.cat(losses).view(input_ids.shape[0], -1)


def chunked_loss(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Computes the mean next-token loss of a batch, differentiable with respect to whatever the body trains.

    Args:
        model: A causal language model with a frozen head.
        input_ids: LongTensor [batch, window], nothing padded; every token after the first is a label.

    Returns:
        Scalar, in nats per token. `backward()` equals that of the plain loss to rounding.
    """
    _check_head(model)
    hidden = body_of(model)(input_ids=input_ids, use_cache=False)[0][:, :-1].flatten(0, 1)
    return _ChunkedLoss.apply(hidden, input_ids[:, 1:].flatten(), model)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, labels, model):
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = _chunk(model)
        for start in range(0, len(labels), size):
            part = hidden[start : start + size].detach()
            with torch.set_grad_enabled(gradient is not None):
                part.requires_grad_(gradient is not None)
                logits = head_logits(model, part).float()
                loss = F.cross_entropy(logits, labels[start : start + size], reduction="sum")
            if gradient is not None:
                (gradient[start : start + size],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.gradient = None if gradient is None else gradient / len(labels)
        return total / len(labels)

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.gradient * grad_output.to(ctx.gradient.dtype), None, None


def _chunk(model: nn.Module) -> int:
    return max(16, _CHUNK_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))


def _check_head(model: nn.Module) -> None:
    """Compares `head_logits` with the model's own logits, once per model: a head we do not know must not pass."""
    if model in _CHECKED:
        return
    ids = torch.arange(3, 7, device=model.get_input_embeddings().weight.device)[None]
    with torch.no_grad():
        ours = head_logits(model, body_of(model)(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head in a way that ssetools does not know "
            f"(largest difference {(ours - theirs).abs().max():.3g}). Please open an issue naming the model."
        )
    _CHECKED.add(model)
