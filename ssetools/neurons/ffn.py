"""Finds the feed-forward (FFN) neurons of a transformer, whatever its family calls them.

A neuron is one unit of the FFN's hidden layer: a row of each input projection (gate and up, or the only one) and a
column of the down projection. Fused projections, transposed Conv1D weights and FFNs without a gate are cases here,
so that no other module needs to know about families.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ssetools.errors import InvalidInput

# Input projections with the share of their rows that they hold, then the output projection.
_LAYOUTS = [
    ({"gate": "gate_proj", "up": "up_proj"}, "down_proj"),
    ({"gate": "gate_up_proj", "up": "gate_up_proj"}, "down_proj"),
    ({"up": "up_proj"}, "down_proj"),
    ({"up": "dense_h_to_4h"}, "dense_4h_to_h"),
    ({"up": "c_fc"}, "c_proj"),
    ({"up": "fc1"}, "fc2"),
]
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "gelu_impl", "activation")
_EXPERT_NAMES = ("experts", "block_sparse_moe", "shared_expert")
_OTHER_TOWERS = ("vision", "visual", "audio", "image")
# For these the sign of the activation is the sign of its input, so counting need not compute them.
_SIGN_KEEPING = {
    "SiLU",
    "SiLUActivation",
    "GELU",
    "GELUActivation",
    "GELUTanh",
    "NewGELUActivation",
    "FastGELUActivation",
}
_SIGN_KEEPING |= {"PytorchGELUTanh", "QuickGELUActivation", "AccurateGELUActivation", "BloomGelu", "ReLU"}


@dataclass(frozen=True)
class Projection:
    """One weight matrix of an FFN, seen neuron by neuron.

    Attributes:
        name: "gate", "up" or "down".
        path: Dotted path of the module inside the model.
        module: `nn.Linear`, `Conv1D`, `Linear8bitLt` or a subclass.
        offset: Index of neuron 0 among the module's outputs (for "up" inside a fused gate_up projection).
    """

    name: str
    path: str
    module: nn.Module
    offset: int = 0

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as [in, out] (GPT-2's Conv1D in 16/32 bit)."""
        return type(getattr(self.module, "base_layer", self.module)).__name__ == "Conv1D"  # PEFT wraps what it adapts

    def add_to_weight(self, neurons: torch.Tensor, delta: torch.Tensor) -> None:
        """Adds a slice in place: `delta` is [k, hidden] for gate and up, [hidden, k] for down."""
        weight = self.module.weight.data
        delta = (delta.T if self.transposed else delta).to(weight)
        axis = 1 if (self.name == "down") != self.transposed else 0
        weight.index_add_(axis, (neurons + self.offset).to(weight.device), delta)


@dataclass(frozen=True)
class FFNBlock:
    """The FFN of one layer.

    Attributes:
        path: Dotted path of the module that holds the projections.
        num_neurons: Width of the FFN.
        hidden_size: Width of the residual stream.
        inputs: Gate (where there is one) and up projection; activation is counted on the first.
        down: Down projection.
        activation: The model's activation module or function, or None if its sign is its input's sign.
    """

    path: str
    num_neurons: int
    hidden_size: int
    inputs: tuple[Projection, ...]
    down: Projection
    activation: object | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Input projections and the down projection."""
        return (*self.inputs, self.down)

    @property
    def weights_per_neuron(self) -> int:
        """Numbers in one neuron's slices, e.g. 3 * hidden_size in a gated FFN."""
        return len(self.projections) * self.hidden_size

    def fired(self, output: torch.Tensor) -> torch.Tensor:
        """Says which neurons fired: activation > 0.

        Args:
            output: Output of the first input projection's module, [..., out].

        Returns:
            BoolTensor [..., num_neurons].
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
    """Finds the FFN of every layer of a causal language model, first layer first.

    Args:
        model: A transformers model, in 16/32 bit or 8-bit.

    Returns:
        One block per layer, all of the same width.

    Raises:
        ValueError: For mixture-of-experts models, named as such, and for models in which no FFN is recognised.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    blocks = []
    for path, module in model.named_modules():
        children = dict(module.named_children())
        if any(name in path.split(".") for name in _EXPERT_NAMES) or any(name in children for name in _EXPERT_NAMES):
            raise InvalidInput(
                f"{family} is a mixture-of-experts model (at {path}): its neurons fire only for the tokens routed to "
                "their expert, so LAPE's probabilities do not compare. Use a dense model."
            )
        if any(tower in path for tower in _OTHER_TOWERS):
            continue
        for inputs, down in _LAYOUTS:
            if down in children and all(name in children for name in inputs.values()):
                blocks.append(_block(path, module, inputs, down))
                break
    if not blocks:
        raise InvalidInput(
            f"No FFN neurons found in {family}: ssetools knows "
            + ", ".join("/".join(dict.fromkeys([*inputs.values(), down])) for inputs, down in _LAYOUTS)
            + ". Open an issue with the output of print(model)."
        )
    widths = {(block.num_neurons, block.hidden_size) for block in blocks}
    if len(widths) > 1:
        raise InvalidInput(f"The layers of {family} differ in (neurons, hidden size): {sorted(widths)}; not supported.")
    return blocks


def _block(path: str, module: nn.Module, inputs: dict[str, str], down: str) -> FFNBlock:
    prefix = f"{path}." if path else ""
    hidden, width = _features(getattr(module, next(iter(inputs.values()))))
    width //= len(inputs) // len(set(inputs.values()))
    fused = len(set(inputs.values())) < len(inputs)
    projections = tuple(
        Projection(name, prefix + child, getattr(module, child), i * width if fused else 0)
        for i, (name, child) in enumerate(inputs.items())
    )
    output = Projection("down", prefix + down, getattr(module, down))
    if _features(output.module) != (width, hidden):
        raise InvalidInput(f"{path}: the down projection is {_features(output.module)}, expected {(width, hidden)}.")
    return FFNBlock(path, width, hidden, projections, output, _activation(module))


def _features(module: nn.Module) -> tuple[int, int]:
    if type(module).__name__ == "Conv1D":
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _activation(module: nn.Module):
    found = next((getattr(module, n) for n in _ACTIVATION_NAMES if callable(getattr(module, n, None))), None)
    if found is None:
        raise InvalidInput(
            f"No activation function found in {type(module).__name__} (tried {', '.join(_ACTIVATION_NAMES)})."
        )
    return None if type(found).__name__ in _SIGN_KEEPING else found
