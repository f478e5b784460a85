"""Trainable slices over a frozen base: only the chosen neurons' weights move, as small deltas beside the model.

The base is never copied, cloned or dequantised. For neurons `idx` of a layer,

    gate, up:  y[..., idx] += x @ rows.T          rows [k, hidden]
    down:      y += h[..., idx] @ columns.T       columns [hidden, k]

which is the FFN with `rows` added to its weight's rows and `columns` to its columns. Deltas start at zero, so weight
decay pulls towards the pretrained weights. Each slice is also a LoRA pair whose other half is one-hot: `to_peft`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.adapter import Adapter, copy_into
from ssetools.ffn import Projection, find_ffn_blocks
from ssetools.interventions import check_layers
from ssetools.models import has_8bit_layers
from ssetools.peft_checkpoint import write_peft
from ssetools.tensors import load_tensors, save_tensors


class _Slice(nn.Module):
    """The delta of one projection at the chosen neurons: [k, hidden] for gate and up, [hidden, k] for down."""

    def __init__(self, projection: Projection, neurons: torch.Tensor, hidden: int):
        super().__init__()
        self.projection = projection
        device = projection.module.weight.device
        shape = (hidden, len(neurons)) if projection.name == "down" else (len(neurons), hidden)
        self.delta = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device))
        self.register_buffer("columns", (neurons + projection.offset).to(device), persistent=False)
        self.active = True
        self.handle = projection.module.register_forward_hook(self._add)

    def _add(self, module, args, output):
        if not self.active:
            return None
        x = args[0]
        if self.projection.name == "down":
            return output + F.linear(x.index_select(-1, self.columns), self.delta.to(x.dtype)).to(output.dtype)
        change = F.linear(x, self.delta.to(x.dtype)).to(output.dtype)
        # Not in place: an 8-bit layer's output is a view made inside a custom autograd function.
        return output.index_add(-1, self.columns, change)


class Subnetwork(Adapter):
    """The trainable slices of chosen neurons, attached to a model. Make one with `attach` or `load`.

    `parameters()` are the slices alone, in float32; the base is frozen.
    """

    format = "ssetools-subnetwork"

    def __init__(self, model: nn.Module, neurons: Sequence[torch.Tensor]):
        blocks = find_ffn_blocks(model)
        check_layers(neurons, blocks)
        if not any(len(ids) for ids in neurons):
            raise ValueError("There is nothing to train: no neuron is selected in any layer. Raise top_rate.")
        super().__init__(model)
        self.neurons = [torch.as_tensor(ids, dtype=torch.long).cpu() for ids in neurons]
        self.slices = nn.ModuleDict()
        for layer, (block, ids) in enumerate(zip(blocks, self.neurons, strict=True)):
            if len(ids):
                for projection in block.projections:
                    name = f"{layer}-{projection.name}"
                    self.slices[name] = _Slice(projection, ids, block.hidden_size)
        self._register()

    @classmethod
    def attach(cls, model: nn.Module, neurons: Sequence[torch.Tensor]) -> Subnetwork:
        """Attaches zero deltas: the model's logits stay exactly what they were, and every base weight is frozen.

        Args:
            model: A causal language model, 8-bit or not.
            neurons: Neuron ids for each layer, as in `neurons["yo"]`.

        Raises:
            ValueError: If the neurons do not fit the model, none is selected, or an adapter is attached already.
        """
        return cls(model, neurons)

    def _switch(self, on):
        for piece in self.slices.values():
            piece.active = on

    def _take_off(self):
        for piece in self.slices.values():
            piece.handle.remove()

    def merge(self) -> nn.Module:
        """Adds the deltas to a 16/32-bit base in place and detaches. Returns the model.

        Raises:
            ValueError: For an 8-bit base, whose steps are coarser than most deltas.
        """
        if has_8bit_layers(self.model):
            raise ValueError(
                "Merging into int8 weights would round most of the training away (a delta of 1e-4 is a quarter of one "
                "int8 step). Load the base with load_in_8bit=False, Subnetwork.load(folder, model), and merge there."
            )
        with torch.no_grad():
            for name, piece in self.slices.items():
                piece.projection.add_to_weight(self.neurons[int(name.split("-")[0])], piece.delta)
        return self.detach()

    def _write(self, folder):
        tensors = {f"{name.replace('-', '.')}": piece.delta for name, piece in self.slices.items()}
        tensors |= {f"{layer}.neurons": ids.int() for layer, ids in enumerate(self.neurons) if len(ids)}
        save_tensors(folder / "adapter.safetensors", tensors, {"format": self.format})
        return {"layers": len(self.neurons)}

    @classmethod
    def _read(cls, folder, model, about):
        tensors, _ = load_tensors(folder / "adapter.safetensors", "a subnetwork adapter")
        empty = torch.empty(0, dtype=torch.long)
        neurons = [tensors.pop(f"{layer}.neurons", empty).long() for layer in range(about["layers"])]
        subnet = cls(model, neurons)
        for name, piece in subnet.slices.items():
            copy_into(piece.delta, tensors[name.replace("-", ".")])
        return subnet

    def to_peft(self, folder: str | Path, uniform_rank: bool = False) -> Path:
        """Writes the same function as a standard PEFT LoRA checkpoint, which PEFT, vLLM and the hub load.

        Args:
            folder: Folder to write.
            uniform_rank: Whether to pad all modules with zeros to one rank (8, 16, 32, 64, 128, 256, 320 or 512), as
                vLLM needs; otherwise every module has the rank of its number of neurons.

        Raises:
            ValueError: If a layer has more neurons than the largest uniform rank.
        """
        slices = [(piece.projection, piece.columns, piece.delta) for piece in self.slices.values()]
        return write_peft(self.model, slices, folder, uniform_rank)

    @classmethod
    def stack(cls, folders: Sequence[str | Path], model: nn.Module, weights: Sequence[float]) -> Subnetwork:
        """Attaches the weighted sum of several saved subnetworks as one, over the union of their neurons.

        Deltas add: each neuron's slice is the sum of the adapters' slices, times their weights. With one weight 1
        and the others 0 it is the function of that adapter.

        Args:
            folders: Folders of saved subnetworks of this model.
            model: The model, with nothing attached.
            weights: A factor for each folder.

        Raises:
            ValueError: If there are not as many weights as folders, or an adapter does not fit the model.
        """
        if len(weights) != len(folders):
            raise ValueError(f"Give a weight for each adapter: {len(folders)} folders, {len(weights)} weights.")
        loaded = []
        for folder in folders:
            loaded.append(cls.load(folder, model))
            loaded[-1].detach()
        union = [torch.cat(ids).unique() for ids in zip(*(one.neurons for one in loaded), strict=True)]
        total = cls(model, union)
        for one, weight in zip(loaded, weights, strict=True):
            for name, piece in one.slices.items():
                layer = int(name.split("-")[0])
                places = torch.searchsorted(total.neurons[layer], one.neurons[layer]).to(piece.delta.device)
                axis = 1 if piece.projection.name == "down" else 0
                with torch.no_grad():
                    total.slices[name].delta.index_add_(axis, places, piece.delta, alpha=weight)
        return total
