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
from ssetools.models import has_8bit_layers, model_source
from ssetools.paths import whole_file
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

    def to_peft(self, folder: str | Path) -> Path:
        """Writes the same function as a standard PEFT LoRA checkpoint, which PEFT and the hub load.

        Gate and up: `lora_B` is one-hot [out, k], `lora_A` the rows [k, hidden]. Down: `lora_A` is one-hot [k, in],
        `lora_B` the columns [hidden, k]. Rank k per module, scaling 1.
        """
        from peft import LoraConfig

        parts: dict[str, list[_Slice]] = {}
        for piece in self.slices.values():
            parts.setdefault(piece.projection.path, []).append(piece)
        tensors, ranks, transposed = {}, {}, False
        for path, pieces in parts.items():
            projection = pieces[0].projection
            transposed |= projection.transposed or _is_converted_conv1d(projection.module)
            columns = torch.cat([piece.columns for piece in pieces]).cpu()
            one_hot = torch.zeros(len(columns), _width(projection))
            one_hot[torch.arange(len(columns)), columns] = 1.0
            delta = torch.cat([piece.delta.detach().cpu() for piece in pieces])
            a, b = (one_hot, delta) if projection.name == "down" else (delta, one_hot.T)
            tensors[f"base_model.model.{path}.lora_A.weight"] = a
            tensors[f"base_model.model.{path}.lora_B.weight"] = b
            ranks[path] = len(columns)
        config = LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            rank_pattern=ranks,
            alpha_pattern=ranks,
            target_modules=sorted(ranks),
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
            base_model_name_or_path=model_source(self.model)["model"],
            inference_mode=True,
        )
        with whole_file(folder) as scratch:
            scratch.mkdir()
            config.save_pretrained(scratch)
            save_tensors(scratch / "adapter_model.safetensors", tensors, {"format": "pt"})
        return Path(folder)


def _is_converted_conv1d(module: nn.Module) -> bool:
    return getattr(getattr(module, "source_cls", None), "__name__", "") == "Conv1D"


def _width(projection: Projection) -> int:
    """The projection module's outputs (gate, up) or inputs (down): the axis along which neurons lie."""
    module, down = projection.module, projection.name == "down"
    if projection.transposed:
        return module.weight.shape[0 if down else 1]
    return module.in_features if down else module.out_features
