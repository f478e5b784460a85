"""Finds the feed-forward (FFN) neurons of a transformer, whatever its family calls them.

A neuron is one unit of the FFN's hidden layer: a row of each input projection (gate and up, or only up) and a column
of the down projection. Fused projections, transposed Conv1D weights and FFNs without a gate are handled here, so that
no other module depends on the family.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.models import decoder_layers

# Names of the input projections, in the order of their rows where one module holds both, and of the down projection.
_LAYOUTS = [
    ({"gate": "gate_proj", "up": "up_proj"}, "down_proj"),
    ({"gate": "gate_up_proj", "up": "gate_up_proj"}, "down_proj"),
    ({"gate": "w1", "up": "w3"}, "w2"),
    ({"up": "up_proj"}, "down_proj"),
    ({"up": "dense_h_to_4h"}, "dense_4h_to_h"),
    ({"up": "c_fc"}, "c_proj"),
    ({"up": "fc_in"}, "fc_out"),
    ({"up": "fc1"}, "fc2"),
]
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "gelu_impl", "activation")
_SILU_IN_FORWARD = ("Lfm2MLP", "Lfm3MLP")  # these call F.silu and have no activation module
_EXPERT_NAMES = ("experts", "block_sparse_moe", "shared_expert")
# For these the sign of the activation is the sign of its input, so counting need not compute them.
_SIGN_KEEPING = re.compile(r"\w*(SiLU|GELU|Gelu)\w*|ReLU")


@dataclass(frozen=True)
class Projection:
    """One weight matrix of an FFN, seen neuron by neuron.

    Attributes:
        name: "gate", "up" or "down".
        path: Dotted path of the module inside the model.
        module: The layer: `nn.Linear` or one with the same attributes (Conv1D, `Linear8bitLt`, a PEFT layer).
        offset: Index of neuron 0 among the module's outputs (for "up" inside a fused gate_up projection).
    """

    name: str
    path: str
    module: nn.Linear
    offset: int = 0

    @property
    def axis(self) -> int:
        """Axis of the neurons in a matrix [out, in] and in a trained slice: 0 for gate and up, 1 for down."""
        return 1 if self.name == "down" else 0

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as [in, out] (GPT-2's Conv1D in 16/32 bit)."""
        return type(getattr(self.module, "base_layer", self.module)).__name__ == "Conv1D"  # PEFT wraps what it adapts

    @property
    def weight_axis(self) -> int:
        """Axis of the neurons in the weight as the module stores it."""
        return 1 - self.axis if self.transposed else self.axis

    @property
    def width(self) -> int:
        """Size of the module along the axis of the neurons: its outputs (gate, up) or inputs (down)."""
        return _in_and_out(self.module)[1 - self.axis]

    def take(self, matrix: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        """Takes some neurons out of a matrix of the weight's shape: [k, hidden], one row a neuron, on the CPU.

        A ValueError if the matrix has another shape, as the packed weights of a 4-bit layer have.
        """
        if matrix.ndim != 2 or matrix.shape[self.weight_axis] != self.width:
            raise InvalidInput(f"The 4-bit weights of {self.path} cannot be read by neuron: load 8 or 16 bits.")
        slices = matrix.index_select(self.weight_axis, (neurons + self.offset).to(matrix.device))
        return (slices.T if self.weight_axis else slices).cpu()

    def add_to_weight(self, neurons: torch.Tensor, delta: torch.Tensor) -> None:
        """Adds a slice in place: `delta` is [k, hidden] for gate and up, [hidden, k] for down."""
        weight = self.module.weight.data
        delta = (delta.T if self.transposed else delta).to(weight)
        weight.index_add_(self.weight_axis, (neurons + self.offset).to(weight.device), delta)


@dataclass(frozen=True)
class FFNBlock:
    """The FFN of one layer.

    Attributes:
        path: Dotted path of the module that holds the projections.
        num_neurons: Width of the FFN.
        hidden_size: Width of the residual stream.
        inputs: Gate (where there is one) and up projection; activation is counted on the first.
        down: Down projection.
        activation: Function of all of a token's pre-activations [..., num_neurons], or None if its sign is its input's.
    """

    path: str
    num_neurons: int
    hidden_size: int
    inputs: tuple[Projection, ...]
    down: Projection
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Input projections and the down projection."""
        return (*self.inputs, self.down)

    @property
    def weights_per_neuron(self) -> int:
        """Number of weights in one neuron's slices, e.g. 3 * hidden_size in a gated FFN."""
        return len(self.projections) * self.hidden_size

    def fired(self, output: torch.Tensor) -> torch.Tensor:
        """Says at which neurons the activation is > 0, BoolTensor [..., num_neurons].

        `output` is what the module of the first input projection gives, [..., out].
        """
        first = self.inputs[0]
        values = output[..., first.offset : first.offset + self.num_neurons]
        if self.activation is not None:
            return self.activation(values) > 0
        if values.dtype == torch.bfloat16 and values.device.type == "cpu":
            # The sign of a number is that of its bits read as an integer, which a CPU compares in half the time.
            return values.view(torch.int16) > 0
        return values > 0


def find_ffn_blocks(model: nn.Module) -> list[FFNBlock]:
    """Finds the FFN of every layer of a causal language model's text decoder, first layer first.

    Args:
        model: A transformers model, in 16/32 bit or 8-bit; of a multimodal model only the text decoder is searched.

    Returns:
        One block per layer, all of the same width.

    Raises:
        ValueError: For mixture-of-experts models, for models in which a layer has no FFN of a known layout or more than
            one, and for models whose layers differ in width.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    paths = {module: path for path, module in model.named_modules()}
    layers = decoder_layers(model)
    experts = [x for layer in layers for name, x in layer.named_modules() if name.rpartition(".")[2] in _EXPERT_NAMES]
    if experts:
        raise InvalidInput(
            f"{family} is a mixture-of-experts model (at {paths[experts[0]]}): its neurons fire only for the tokens routed to "
            "their expert, so LAPE's probabilities do not compare. Use a dense model."
        )
    blocks = []
    for number, layer in enumerate(layers):
        in_layer = [_block(paths[x], x, *layout) for x in layer.modules() if (layout := _layout_of(x))]
        if len(in_layer) != 1:
            raise InvalidInput(
                f"No FFN neurons found in {family}: layer {number} ({paths[layer]}) has {len(in_layer)} FFNs of a known layout, "
                f"and needs one. ssetools knows {', '.join('/'.join(dict.fromkeys([*x.values(), y])) for x, y in _LAYOUTS)}. "
                'The methods "full" and "ia3" need no neurons.'
            )
        blocks += in_layer
    widths = sorted({(block.num_neurons, block.hidden_size) for block in blocks})
    if len(widths) > 1:
        raise InvalidInput(
            f"The layers of {family} differ in (neurons, hidden size): {widths}. Neuron sets need layers of one width; the "
            'methods "full" and "ia3" need no neurons.'
        )
    return blocks


def _layout_of(module: nn.Module) -> tuple[dict[str, str], str] | None:
    names = {name for name, _ in module.named_children()}
    return next((layout for layout in _LAYOUTS if names.issuperset([*layout[0].values(), layout[1]])), None)


def _block(path: str, module: nn.Module, inputs: dict[str, str], down: str) -> FFNBlock:
    fused = len(set(inputs.values())) < len(inputs)
    hidden, width = _in_and_out(getattr(module, next(iter(inputs.values()))))
    width //= len(inputs) if fused else 1
    projections = [
        Projection(name, f"{path}.{child}", getattr(module, child), i * width if fused else 0)
        for i, (name, child) in enumerate(inputs.items())
    ]
    output = Projection("down", f"{path}.{down}", getattr(module, down))
    if _in_and_out(output.module) != (width, hidden):
        raise InvalidInput(
            f"{path} has an FFN of an unknown layout: {down} takes {_in_and_out(output.module)[0]} inputs, and the layers "
            f"before it give {width} neurons."
        )
    return FFNBlock(path, width, hidden, tuple(projections), output, _activation(module))


def _in_and_out(module: nn.Linear) -> tuple[int, int]:
    if type(module).__name__ == "Conv1D":
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _activation(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if type(module).__name__ in _SILU_IN_FORWARD:
        return None
    if getattr(module, "activation_sparsity", 0):  # Gemma 3n: only the largest pre-activations of a token pass
        return cast(Any, module)._gaussian_topk
    function = next((getattr(module, n) for n in _ACTIVATION_NAMES if callable(getattr(module, n, None))), None)
    if function is None:
        raise InvalidInput(f"No activation function found in {type(module).__name__} under {_ACTIVATION_NAMES}.")
    return None if _SIGN_KEEPING.fullmatch(type(function).__name__) else function
