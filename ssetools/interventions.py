"""Switches chosen neurons off, or turns them up, for the length of a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ssetools.ffn import find_ffn_blocks
from ssetools.neurons import check_ids


@contextlib.contextmanager
def amplified(model: nn.Module, neurons: Sequence[torch.Tensor], factor: float = 2.0) -> Iterator[nn.Module]:
    """Multiplies the output of the chosen neurons by `factor` while the block runs.

    Args:
        model: A causal language model.
        neurons: Neuron ids for each layer, as in `neurons["yo"]`.
        factor: 0 switches the neurons off, 1 changes nothing.

    Yields:
        The model.

    Raises:
        ValueError: If the neurons do not fit the model.
    """
    blocks = find_ffn_blocks(model)
    check_layers(neurons, blocks)
    hooks = []
    try:
        for block, ids in zip(blocks, neurons, strict=True):
            if len(ids):
                scale = torch.ones(block.num_neurons, device=block.down.module.weight.device)
                scale[ids] = factor
                hook = block.down.module.register_forward_pre_hook(
                    lambda module, args, scale=scale: (args[0] * scale.to(args[0].dtype), *args[1:])
                )
                hooks.append(hook)
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def deactivated(model: nn.Module, neurons: Sequence[torch.Tensor]):
    """Switches the chosen neurons off while the block runs: `with deactivated(model, neurons["yo"]): ...`."""
    return amplified(model, neurons, factor=0.0)


def check_layers(neurons: Sequence[torch.Tensor], blocks: Sequence) -> None:
    """Raises a ValueError unless `neurons` has one list of valid ids for each block."""
    if len(neurons) != len(blocks):
        raise ValueError(f"The neurons are for {len(neurons)} layers, but this model has {len(blocks)}: other model?")
    for layer, (ids, block) in enumerate(zip(neurons, blocks, strict=True)):
        check_ids(ids, block.num_neurons, f"layer {layer}")
