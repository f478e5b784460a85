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
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput
from ssetools.files import load_tensors, save_tensors
from ssetools.models import has_8bit_layers, int8_scales
from ssetools.neurons.ffn import Projection, find_ffn_blocks
from ssetools.neurons.sets import check_layers
from ssetools.training.adapter import Adapter, copy_into


class _Slice(nn.Module):
    """The delta of one projection at the chosen neurons: [k, hidden] for gate and up, [hidden, k] for down."""

    columns: torch.Tensor

    def __init__(self, projection: Projection, layer: int, neurons: torch.Tensor, hidden: int):
        super().__init__()
        self.projection, self.layer, self.factor = projection, layer, 1.0
        device = projection.module.weight.device
        shape = (hidden, len(neurons)) if projection.axis else (len(neurons), hidden)
        self.delta = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device))
        self.register_buffer("columns", (neurons + projection.offset).to(device), persistent=False)
        self.handle = projection.module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self.factor == 0:
            return None
        x, delta = args[0], self.scaled(self.factor).to(args[0].dtype)
        if self.projection.axis:
            return output + F.linear(cast(torch.Tensor, _Taken.apply(x, self.columns)), delta).to(output.dtype)
        return cast(torch.Tensor, _Added.apply(output, F.linear(x, delta).to(output.dtype), self.columns))

    def scaled(self, factor: float) -> torch.Tensor:
        return self.delta if factor == 1 else self.delta * factor


class _Added(torch.autograd.Function):
    """A projection's output with a change added at some columns, in the output's own memory.

    A copy of the output costs more than all the rest of a slice. No layer keeps its output for the backward pass, so
    writing into it is safe; plain autograd forbids it, as an 8-bit layer's output is a view made by a custom function.
    """

    @staticmethod
    def forward(ctx, output, change, columns):
        ctx.save_for_backward(columns)
        output[..., columns] += change
        return output

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.index_select(-1, *ctx.saved_tensors), None


class _Taken(torch.autograd.Function):
    """Some columns of a tensor, none of them twice: that is why the gradient can be written in place of added."""

    @staticmethod
    def forward(ctx, x, columns):
        ctx.save_for_backward(columns)
        ctx.shape = x.shape
        return x.index_select(-1, columns)

    @staticmethod
    def backward(ctx, grad):
        whole = grad.new_zeros(ctx.shape)
        whole[..., ctx.saved_tensors[0]] = grad
        return whole, None


class Subnetwork(Adapter):
    """The trainable slices of chosen neurons, attached to a model. Make one with `attach` or `load`.

    `parameters()` are the slices alone, in float32; the base is frozen.
    """

    format = "ssetools-subnetwork"

    def __init__(self, model: nn.Module, neurons: Sequence[torch.Tensor]):
        blocks = find_ffn_blocks(model)
        check_layers(neurons, blocks)
        if not any(len(ids) for ids in neurons):
            raise InvalidInput("There is nothing to train: no neuron is selected in any layer. Raise top_rate.")
        super().__init__(model)
        self.parts: list[Subnetwork] = []  # of a stack
        self.neurons = [torch.as_tensor(ids, dtype=torch.long).cpu() for ids in neurons]
        self.slices = nn.ModuleDict()
        for layer, (block, ids) in enumerate(zip(blocks, self.neurons, strict=True)):
            for projection in block.projections if len(ids) else ():
                self.slices[f"{layer}-{projection.name}"] = _Slice(projection, layer, ids, block.hidden_size)
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

    def _register(self) -> None:
        super()._register()
        del self.model.__dict__["ssetools_adapter"]
        self.model.ssetools_adapter = self  # a submodule, so that trainers find its parameters

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A model that is moved or cast takes its submodules along: to another device, but the deltas stay float32.
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    @property
    def _pieces(self) -> list[_Slice]:
        return cast(list[_Slice], list(self.slices.values()))

    def _set_factor(self, factor: float) -> None:
        for piece in self._pieces:
            piece.factor = factor

    def _take_off(self) -> None:
        for piece in self._pieces:
            piece.handle.remove()

    def _merge(self) -> None:
        with torch.no_grad():
            for piece in self._pieces:
                piece.projection.add_to_weight(self.neurons[piece.layer], piece.scaled(self.scale))

    def _lost_in(self, kind: str) -> str:
        if kind != "int8":
            return super()._lost_in(kind)
        return f"these slices would miss what was trained by {self.int8_merge_error():.0%} of its norm"

    def int8_merge_error(self) -> float:
        """Measures what merging into the 8-bit base would lose: 0 nothing, 1 as much as was trained.

        Every merged matrix is rounded to int8 as bitsandbytes does and read back. Returned is the norm of what the
        neurons' slices are then off by, over the norm of the deltas.

        Raises:
            ValueError: If the base is not 8-bit.
        """
        if not has_8bit_layers(self.model):
            raise InvalidInput("The base has no 8-bit layers: merge() loses nothing but its own rounding.")
        missed = trained = 0.0
        with torch.no_grad():
            for piece in self._pieces:
                missed += _missed_in_int8(piece, self.scale).square().sum().item()
                trained += piece.scaled(self.scale).square().sum().item()
        return (missed / trained) ** 0.5 if trained else 0.0

    def _lora_pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Writes each slice as a pair of which one half is one-hot; the slices of a fused module share one."""
        pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for piece in self._pieces:
            columns, delta = piece.columns.cpu(), piece.scaled(self.scale).detach().cpu()
            one_hot = F.one_hot(columns, piece.projection.width).float()
            a, b = (one_hot, delta) if piece.projection.axis else (delta, one_hot.T)
            if piece.projection.path in pairs:
                before = pairs[piece.projection.path]
                a, b = torch.cat([before[0], a]), torch.cat([before[1], b], 1)
            pairs[piece.projection.path] = a, b
        return pairs

    def _write(self, folder: Path) -> dict[str, Any]:
        tensors = {f"{x.layer}.{x.projection.name}": cast(torch.Tensor, x.delta) for x in self._pieces}
        tensors |= {f"{layer}.neurons": ids.int() for layer, ids in enumerate(self.neurons) if len(ids)}
        save_tensors(folder / "adapter.safetensors", tensors, {"format": self.format})
        return {"layers": len(self.neurons)}

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict[str, Any]) -> Subnetwork:
        tensors, _ = load_tensors(folder / "adapter.safetensors", "a subnetwork adapter")
        empty = torch.empty(0, dtype=torch.long)
        subnet = cls(model, [tensors.pop(f"{layer}.neurons", empty).long() for layer in range(about["layers"])])
        for piece in subnet._pieces:
            copy_into(piece.delta, tensors[f"{piece.layer}.{piece.projection.name}"])
        return subnet

    @classmethod
    def stack(cls, folders: Sequence[str | Path], model: nn.Module, weights: Sequence[float]) -> Subnetwork:
        """Attaches several saved subnetworks to one base, as one over the union of their neurons.

        Deltas add: each neuron's slice is the sum of the adapters' slices, times their scale and weight. With one weight
        1 and the others 0 it is the function of that adapter; `weigh` changes the weights in place.

        Args:
            folders: Folders of saved subnetworks of this model.
            model: The model, with nothing attached.
            weights: A factor for each folder.

        Raises:
            ValueError: If there are not as many weights as folders, or an adapter does not fit the model.
        """
        if len(weights) != len(folders):
            raise InvalidInput(f"Give a weight for each adapter: {len(folders)} folders, {len(weights)} weights.")
        parts = []
        for folder in folders:
            parts.append(cast(Subnetwork, cls.load(folder, model)))
            parts[-1].detach()
        stacked = cls(model, [torch.cat(ids).unique() for ids in zip(*(part.neurons for part in parts), strict=True)])
        stacked.parts = parts
        stacked.weigh(weights)
        return stacked

    def weigh(self, weights: Sequence[float]) -> None:
        """Gives the adapters of a stack other weights, in place: (0, 1) switches to the second of two.

        Raises:
            ValueError: If this is no stack, or there are not as many weights as adapters.
        """
        if len(weights) != len(self.parts):
            raise InvalidInput(f"Give a weight for each adapter: {len(self.parts)} adapters, {len(weights)} weights.")
        with torch.no_grad():
            for mine in self._pieces:
                mine.delta.zero_()
            for part, weight in zip(self.parts, weights, strict=True):
                for name, piece in part.slices.items():
                    mine, piece = cast(_Slice, self.slices[name]), cast(_Slice, piece)
                    places = torch.searchsorted(self.neurons[piece.layer], part.neurons[piece.layer])
                    places = places.to(mine.delta.device)
                    mine.delta.index_add_(piece.projection.axis, places, piece.delta, alpha=weight * part.scale)


def _missed_in_int8(piece: _Slice, scale: float) -> torch.Tensor:
    """What the slice's weights would be off by after merging into the int8 matrix; same shape as its delta."""
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    module, axis = piece.projection.module, piece.projection.axis
    merged = int8_vectorwise_dequant(module.weight.data, int8_scales(module))
    merged.index_add_(axis, piece.columns, piece.scaled(scale))
    codes, scales, _ = int8_vectorwise_quant(merged.half())
    return (int8_vectorwise_dequant(codes, scales) - merged).index_select(axis, piece.columns)
