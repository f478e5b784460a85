"""Two ways for a training step to keep less in memory: recomputed activations and an 8-bit optimiser state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssetools.ffn import decoder_layers

OPTIMIZERS = ("adamw", "adamw8bit")


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Makes an optimiser over float32 parameters.

    Args:
        name: "adamw" (8 bytes of state for each number), or "adamw8bit" (2 bytes; bitsandbytes, in blocks of 256;
            tensors of fewer than 4,096 numbers keep 8 bytes).
        parameters: What it moves.
        learning_rate: Peak rate.
        weight_decay: Decoupled, as AdamW's.

    Raises:
        ValueError: For an unknown name, or a device on which bitsandbytes has no 8-bit AdamW.
    """
    check_optimizer(name)
    parameters = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    device = parameters[0].device.type
    if device not in ("cpu", "cuda", "xpu"):
        raise ValueError(f"bitsandbytes has no 8-bit AdamW on {device}: use optimizer='adamw'.")
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)


def check_optimizer(name: str) -> None:
    """Raises a ValueError naming the valid optimisers unless `name` is one."""
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {name!r}: use one of {', '.join(OPTIMIZERS)}.")


@contextlib.contextmanager
def checkpointed_activations(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Keeps only what enters each layer during a `with` block; the backward pass computes the rest again.

    Works in evaluation mode, in which ssetools trains, and with 8-bit layers, whose inputs are kept by `bitsandbytes`
    itself where autograd cannot drop them: so the layer runs without a graph at first (PyTorch's reentrant kind).

    Args:
        model: A causal language model, with whatever is trained attached.
        active: False does nothing.
    """
    layers = decoder_layers(model) if active else []
    for layer in layers:
        layer.forward = _recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            before = layer.forward.__wrapped__
            if getattr(before, "__func__", None) is type(layer).forward:
                del layer.forward
            else:  # it was replaced on this module before us, as accelerate does on several devices
                layer.forward = before


def _recomputed(forward):
    def run(hidden, *args, **options):
        if not torch.is_grad_enabled():
            return forward(hidden, *args, **options)
        if not hidden.requires_grad:  # else the layer's output would not, whatever is trained inside
            hidden = hidden.detach().requires_grad_()
        return checkpoint(lambda x: forward(x, *args, **options), hidden, use_reentrant=True)

    run.__wrapped__ = forward
    return run
