"""Trains whole weights of a 16/32-bit base, those of the FFN or all: the methods that the subnetwork is held against."""

from __future__ import annotations

import torch
from torch import nn

from ssetools.adapter import Adapter, copy_into
from ssetools.ffn import find_ffn_blocks
from ssetools.models import has_8bit_layers
from ssetools.sharding import is_sharded
from ssetools.tensors import load_tensors, save_tensors


class WholeWeights(Adapter):
    """Every weight of the model, or every gate, up and down projection, trained in place.

    The optimiser moves float32 masters; a 16-bit model holds their rounded copies. What the weights were before is
    kept, so that the base can be switched back to: a full fine-tuning that can be taken off like an adapter.
    """

    format = "ssetools-weights"

    def __init__(self, model: nn.Module, only_ffn: bool):
        which = "ffn" if only_ffn else "full"
        if is_sharded(model):
            raise ValueError(
                f"Method {which!r} trains the weights themselves, and those of a sharded model are spread over processes, "
                "which exchange only what is trained beside it: load the model whole."
            )
        if has_8bit_layers(model):
            raise ValueError(
                f"Method {which!r} trains the weights themselves, and int8 weights cannot be trained: load the model "
                "with load_in_8bit=False."
            )
        super().__init__(model)
        self.only_ffn = only_ffn
        self._weights = dict(model.named_parameters())
        if only_ffn:
            paths = {p.path for block in find_ffn_blocks(model) for p in (*block.inputs, block.down)}
            self._weights = {f"{path}.weight": self._weights[f"{path}.weight"] for path in sorted(paths)}
        self._before = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.masters = nn.ParameterDict(
            {name.replace(".", "-"): nn.Parameter(weight.detach().float().clone()) for name, weight in self.pairs()}
        )
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._register()

    def pairs(self):
        """Returns the trained weights by name, as the model holds them."""
        return self._weights.items()

    def collect_gradients(self):
        for name, weight in self.pairs():
            master = self.masters[name.replace(".", "-")]
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def publish(self):
        for name, weight in self.pairs():
            copy_into(weight, self.masters[name.replace(".", "-")])

    def base_value(self, weight):
        return next((self._before[name] for name, mine in self.pairs() if mine is weight), weight)

    def load_state_dict(self, state, *args, **options):
        found = super().load_state_dict(state, *args, **options)
        self.publish()
        return found

    def _switch(self, on):
        if on:
            self.publish()
            return
        for name, weight in self.pairs():
            copy_into(weight, self._before[name])

    def _take_off(self):
        self._switch(False)
        for weight in self._weights.values():
            weight.requires_grad_(False)
            weight.grad = None

    def _write(self, folder):
        # Not the model's own weights: off the model, these are the base's.
        tensors = {
            name: self.masters[name.replace(".", "-")].detach().to(weight.dtype) for name, weight in self.pairs()
        }
        save_tensors(folder / "adapter.safetensors", tensors, {"format": self.format})
        return {"only_ffn": self.only_ffn}

    @classmethod
    def _read(cls, folder, model, about):
        tensors, _ = load_tensors(folder / "adapter.safetensors", "trained weights")
        adapter = cls(model, about["only_ffn"])
        with torch.no_grad():
            for name, value in tensors.items():
                adapter.masters[name.replace(".", "-")].copy_(value)
        adapter.publish()
        return adapter
