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
from ssetools.neurons.ffn import Projection, find_ffn_blocks
from ssetools.neurons.sets import check_layers
from ssetools.training.adapter import Adapter


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
    """A projection's output with a change added at some columns, in the output's own memory: copying it costs more.

    No layer keeps its output for the backward pass, so writing into it is safe; plain autograd forbids it, as an 8-bit
    layer's output is a view made by a custom function.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, change: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(columns)
        output[..., columns] += change
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, grad.index_select(-1, *ctx.saved_tensors), None


class _Taken(torch.autograd.Function):
    """Some columns of a tensor, none of them twice: that is why the gradient can be written in place of added."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(columns)
        ctx.shape = x.shape
        return x.index_select(-1, columns)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        whole = grad.new_zeros(ctx.shape)
        whole[..., ctx.saved_tensors[0]] = grad
        return whole, None


class Subnetwork(Adapter):
    """The trainable slices of chosen neurons, attached to a model. Make one with `attach` or `load`.

    `parameters()` are the slices alone, in float32; the base is frozen.
    """

    format = "ssetools-subnetwork"
    _is_submodule = True

    def __init__(self, model: nn.Module, neurons: Sequence[torch.Tensor]):
        blocks = find_ffn_blocks(model)
        check_layers(neurons, blocks)
        if not any(len(ids) for ids in neurons):
            raise InvalidInput("There is nothing to train: no neuron is selected in any layer. Raise top_rate.")
        super().__init__(model)
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
            neurons: Neuron ids for each layer, as in `neurons["yo"]`; a ValueError if they do not fit or there are none.
        """
        return cls(model, neurons)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A model that is moved or cast takes its submodules along: to another device, but the deltas stay float32.
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

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

    def _lora_pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Writes each slice as a pair of which one half is one-hot; the slices of a fused module share one."""
        pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for piece in self._pieces:
            path, delta = piece.projection.path, piece.scaled(self.scale).detach().cpu()
            one_hot = F.one_hot(piece.columns.cpu(), piece.projection.width).float()
            a, b = (one_hot, delta) if piece.projection.axis else (delta, one_hot.T)
            if path in pairs:
                a, b = torch.cat([pairs[path][0], a]), torch.cat([pairs[path][1], b], 1)
            pairs[path] = a, b
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
            piece.delta.data.copy_(tensors[f"{piece.layer}.{piece.projection.name}"])
        return subnet

    @classmethod
    def stack(cls, folders: Sequence[str | Path], model: nn.Module, weights: Sequence[float]) -> Subnetwork:
        """Attaches saved subnetworks as one: each neuron's delta is the sum of theirs, times their scale and weight.

        Args:
            folders: Folders of saved subnetworks of this model.
            model: The model, with nothing attached.
            weights: A factor for each folder (else a ValueError); with one of them 1 and the others 0 it is that adapter.
        """
        if len(weights) != len(folders):
            raise InvalidInput(f"Give a weight for each adapter: {len(folders)} folders, {len(weights)} weights.")
        parts = []
        for folder in folders:
            parts.append(cast(Subnetwork, cls.load(folder, model)))
            parts[-1].detach()
        stacked = cls(model, [torch.cat(ids).unique() for ids in zip(*(part.neurons for part in parts), strict=True)])
        for part, weight in zip(parts, weights, strict=True):
            for name, theirs in part.slices.items():
                ours, theirs = cast(_Slice, stacked.slices[name]), cast(_Slice, theirs)
                places = torch.searchsorted(ours.columns, theirs.columns)
                ours.delta.data.index_add_(theirs.projection.axis, places, theirs.delta.data, alpha=weight * part.scale)
        return stacked
