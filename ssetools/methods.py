"""The methods that are compared, by name: what each trains, on which base, and at which rate by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ssetools.adapter import Adapter, adapter_facts
from ssetools.ffn import find_ffn_blocks
from ssetools.peft_adapter import PeftAdapter, rank_with
from ssetools.subnetwork import Subnetwork
from ssetools.weights import WholeWeights


@dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        trains: What moves, in words.
        learning_rate: Peak rate of AdamW by default.
        search: Rates that a comparison tries.
        needs_neurons: Whether the method is given neurons, or (LoRA at equal size) their number.
        on_8bit: Whether the base may be 8-bit.
    """

    trains: str
    learning_rate: float
    search: tuple[float, ...]
    needs_neurons: bool = False
    on_8bit: bool = True


_NEURON_RATES = (3.3e-5, 1e-4, 3e-4, 9e-4, 27e-4, 81e-4)
_WEIGHT_RATES = (3.3e-6, 1e-5, 3e-5, 9e-5, 27e-5, 81e-5)

METHODS = {
    "lape": Method("the weights of the language's neurons", 1e-4, _NEURON_RATES, needs_neurons=True),
    "random": Method("as many other neurons, matched in depth", 1e-4, _NEURON_RATES, needs_neurons=True),
    "random-uniform": Method("as many other neurons, at any depth", 1e-4, _NEURON_RATES, needs_neurons=True),
    "ffn": Method("all gate, up and down projections", 3e-5, _WEIGHT_RATES, on_8bit=False),
    "full": Method("all weights", 3e-5, _WEIGHT_RATES, on_8bit=False),
    "lora": Method("LoRA of rank 32 on gate, up and down projections", 1e-4, _NEURON_RATES),
    "lora-equal": Method(
        "LoRA with as many parameters as the language's neurons", 1e-4, _NEURON_RATES, needs_neurons=True
    ),
    "ia3": Method("IA3: factors on attention and FFN activations", 5e-3, (6.7e-4, 2e-3, 6e-3, 18e-3, 54e-3, 162e-3)),
}
"""The methods by name. Adapters train on an 8-bit base; "ffn" and "full" need the 16- or 32-bit one."""


def attach_method(model: nn.Module, method: str, neurons: Sequence[torch.Tensor] | None = None) -> Adapter:
    """Attaches what a method trains to a model; nothing changes until it is trained.

    Args:
        model: A causal language model; 8-bit for all methods but "ffn" and "full".
        method: A name of `METHODS`.
        neurons: Neuron ids for each layer, for the methods that need them.

    Raises:
        ValueError: For an unknown method, missing neurons, or a base that the method cannot train.
    """
    check_method(method)
    if METHODS[method].needs_neurons and neurons is None:
        raise ValueError(f'Method {method!r} needs neurons=, such as neurons["yo"] of a NeuronSets.')
    if method == "ia3":
        return PeftAdapter.ia3(model)
    if method == "lora":
        return PeftAdapter.lora(model)
    if method == "lora-equal":
        size = sum(len(ids) for ids in neurons) * find_ffn_blocks(model)[0].weights_per_neuron
        return PeftAdapter.lora(model, rank_with(model, size))
    if method in ("ffn", "full"):
        return WholeWeights(model, only_ffn=method == "ffn")
    return Subnetwork.attach(model, neurons)


def load_adapter(folder: str | Path, model: nn.Module) -> Adapter:
    """Attaches a saved adapter of any method.

    Raises:
        FileNotFoundError: If `folder` holds no adapter.
        ValueError: If it was trained for another model.
    """
    form = adapter_facts(folder)["format"]
    for kind in (Subnetwork, PeftAdapter, WholeWeights):
        if kind.format == form:
            return kind.load(folder, model)
    raise ValueError(f"{folder} holds an adapter of unknown format {form!r}: was it made by a newer ssetools?")


def check_method(method: str) -> None:
    """Raises a ValueError naming the valid methods unless `method` is one."""
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")
