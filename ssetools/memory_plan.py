"""Predicts the memory of a training run: counts all allocations of one step on a model of shapes without data."""

from __future__ import annotations

import functools
import math
import weakref
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssetools.errors import InvalidInput
from ssetools.loss import BLOCK_BYTES, Head, _BlockwiseLoss
from ssetools.models import as_dtype, body_of, choose_dtype
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.sets import LayerNeurons
from ssetools.text.hub import hub_reachable, quiet
from ssetools.training.loop import TrainingSettings, checkpointed_activations
from ssetools.training.methods import METHODS, attach_method, check_method

GIB = 2**30
_TOKENIZER_BYTES_PER_WORD = 1200  # a BPE tokenizer of the `tokenizers` library; measured on Gemma's 262,144 words

_GEMMA = {"model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048}
_GEMMA |= {"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
_8B = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
_8B |= {"num_key_value_heads": 8, "tie_word_embeddings": False}
_12B = {**_8B, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128}
_SMOLLM2 = {"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536}
_SMOLLM2 |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
_AYA = {"model_type": "cohere", "vocab_size": 256_000, "logit_scale": 0.125, "tie_word_embeddings": True}
KNOWN_MODELS = {
    "gemma-3-270m": {**_GEMMA, "sliding_window": 512, "tie_word_embeddings": True},
    "smollm2-135m": _SMOLLM2,
    "meta-llama/Llama-3.1-8B": {**_8B, "model_type": "llama", "vocab_size": 128_256},
    "mistralai/Mistral-Nemo-Base-2407": {**_12B, "model_type": "mistral", "vocab_size": 131_072},
    "CohereLabs/aya-expanse-8b": {**_8B, **_AYA},
}
"""Configurations of models that can be planned without the hub, by id."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a training run needs, in bytes.

    Attributes:
        model: Name of the model.
        num_weights: Number of its weights.
        num_trained: Number of trained parameters.
        weights: The frozen model, with its scales where it is 8-bit.
        trained: What the method adds: float32 deltas or adapters, or for "ffn" and "full" two copies of the weights.
        gradients: Of the trained parameters, float32.
        optimizer: The optimiser's state.
        tokenizer: The vocabulary, in main memory.
        activations: What the forward pass of a batch keeps for the backward pass.
        step: Peak of a step beyond the above: activations, loss, gradients and temporary tensors.
        device: "cpu" or "cuda".
        dtype: Of the computation.
    """

    model: str
    num_weights: int
    num_trained: int
    weights: int
    trained: int
    gradients: int
    optimizer: int
    tokenizer: int
    activations: int
    step: int
    device: str
    dtype: str

    @property
    def peak(self) -> int:
        """Peak memory of the device while training, in bytes, without Python and its libraries.

        Loading can briefly take more, as can glibc if it keeps freed memory: set MALLOC_MMAP_THRESHOLD_=262144.
        """
        best = self.gradients  # the loop keeps the best trained parameters so far in main memory, in float32 too
        main_memory = best + self.tokenizer if self.device == "cpu" else 0
        return self.weights + self.trained + self.optimizer + main_memory + self.step

    def __str__(self) -> str:
        rows = [
            ("weights", self.weights, f"{self.num_weights:,} weights"),
            ("trained", self.trained, f"{self.num_trained:,} parameters ({self.num_trained / self.num_weights:.2%})"),
            ("optimiser state", self.optimizer, ""),
            ("a training step", self.step, f"with activations of {self.activations / GIB:.2f} GiB"),
            ("gradients", self.gradients, "within the step"),
            ("tokenizer", self.tokenizer, "in main memory"),
            ("peak", self.peak, f"on {self.device}, {self.dtype}"),
        ]
        return "\n".join(f"{name:<16} {size / GIB:8.2f} GiB   {note}".rstrip() for name, size, note in rows)


def plan_memory(
    model: str,
    neurons: int | LayerNeurons | None = None,
    method: str = "subnetwork",
    load_in_8bit: bool = True,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    **settings: Any,
) -> MemoryPlan:
    """Predicts the memory of a training run from the model's configuration, without loading a weight.

    The model is built with tensors that have shapes but no data, for any family and method, and one training step runs
    on it while every allocation is counted. A ValueError for what is unknown, or does not fit the model or method.

    Args:
        model: A name of `KNOWN_MODELS` (or its last part), a local folder, or a hub id.
        neurons: How many neurons are trained, spread evenly over the layers; or their ids for each layer.
        method: A name of `METHODS`.
        load_in_8bit: As in `load_model`.
        dtype: Of weights that are not 8-bit; None takes bfloat16 on "cuda", and `load_model`'s choice on "cpu".
        device: "cuda" or "cpu"; None takes the one of this machine.
        **settings: Fields of `TrainingSettings`: batch_size, window, optimizer and checkpoint_activations matter.
    """
    check_method(method)
    training = TrainingSettings(**settings)
    if load_in_8bit and not METHODS[method].on_8bit:
        raise InvalidInput(f"Method {method!r} cannot train 8-bit weights: plan it with load_in_8bit=False.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = config_of(model)
    dtype = as_dtype(dtype or (torch.bfloat16 if device == "cuda" else choose_dtype(config, device)))
    with _LiveMemory() as memory:
        base = build_without_data(config, dtype, load_in_8bit, device)
        num_weights, weights = sum(p.numel() for p in base.parameters()), memory.bytes
        adapter = attach_method(base, method, spread_neurons(base, neurons))
        trained = memory.bytes - weights
        sizes = [p.numel() for p in adapter.parameters()]
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            use_fake_cpu_tensors(mode, base, adapter)
            before = memory.peak = memory.bytes
            activations = run_training_step(base, training, device, memory) - before
            step = memory.peak - before
        adapter.detach()
    gradients = 4 * sum(sizes)
    return MemoryPlan(
        model,
        *(num_weights, sum(sizes), weights, trained, gradients),
        optimizer=sum(_optimizer_bytes(size, training.optimizer) for size in sizes),
        tokenizer=_TOKENIZER_BYTES_PER_WORD * config.get_text_config().vocab_size,
        activations=activations,
        # The optimiser's own step holds all gradients, and on a GPU temporary tensors of about the same size.
        step=max(step, gradients * (2 if device == "cuda" else 1)),
        device=device,
        dtype=str(dtype)[6:] + (" and 8-bit weights" if load_in_8bit else ""),
    )


def config_of(model: str) -> Any:
    """Returns the transformers config of a known model, a local folder or a hub id; a ValueError if there is none."""
    import transformers

    for name, facts in KNOWN_MODELS.items():
        if model.lower() in (name.lower(), name.split("/")[-1].lower()):
            return transformers.AutoConfig.for_model(**facts)
    hub_reachable()  # without a network this makes transformers read its cache at once, not after half a minute
    try:
        with quiet("transformers"):
            return transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        known = f"{', '.join(KNOWN_MODELS)}, a local transformers folder, or the id of a model on a hub within reach"
        raise InvalidInput(f"There is no configuration for {model!r}: use {known}.") from error


def spread_neurons(model: nn.Module, neurons: int | LayerNeurons | None) -> LayerNeurons | None:
    """Returns `neurons`, or as many as it says, spread evenly over the layers; a ValueError if the model has fewer."""
    if not isinstance(neurons, int):
        return neurons
    blocks = find_ffn_blocks(model)
    available = sum(block.num_neurons for block in blocks)
    if not 0 < neurons <= available:
        raise InvalidInput(f"{neurons} neurons cannot be trained: this model has {available:,}.")
    per_layer, remainder = divmod(neurons, len(blocks))
    return [torch.arange(per_layer + (layer < remainder)) for layer in range(len(blocks))]


def _optimizer_bytes(size: int, optimizer: str) -> int:
    # bitsandbytes keeps 32-bit state of smaller tensors, and a scale for each block.
    in_8bit = optimizer == "adamw8bit" and size >= 4096
    return 2 * (size + 4 * -(-size // 256)) if in_8bit else 8 * size


# --- a model without data, and one training step on it ---


class _LiveMemory(TorchDispatchMode):
    """Counts `bytes` of all tensor storages since the start that are not freed yet, and their `peak`."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            if storage._cdata not in self._storages:
                freed = functools.partial(self._free, storage._cdata, storage.nbytes())
                self._storages[storage._cdata] = weakref.ref(storage, freed)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
        return result

    def _free(self, key: int, size: int, _: weakref.ref) -> None:
        del self._storages[key]
        self.bytes -= size


def build_without_data(config: Any, dtype: torch.dtype, load_in_8bit: bool, device: str) -> Any:
    """Builds a frozen model from its configuration on PyTorch's "meta" device, 8-bit layers as on `device`."""
    import transformers

    with quiet("transformers"), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model.requires_grad_(False)
        model.config.use_cache = False
        head = model.get_output_embeddings()
        linear: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        for module in linear if load_in_8bit else ():
            module.weight = nn.Parameter(torch.empty(module.weight.shape, dtype=torch.int8), requires_grad=False)
            module.register_buffer("scales", torch.empty(module.out_features))
            module.forward = functools.partial(_forward_8bit, module, device)
    return model


def use_fake_cpu_tensors(mode: FakeTensorMode, *modules: nn.Module) -> None:
    """Replaces "meta" tensors by fake tensors of the CPU, on which operators keep what they keep on real hardware."""

    @functools.cache  # tied weights stay one tensor
    def fake(tensor: torch.Tensor) -> Any:
        bare = tensor.detach()
        replaced = FakeTensor(mode, bare, torch.device("cpu")) if bare.is_meta else mode.from_tensor(bare)
        return nn.Parameter(replaced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else replaced

    for module in (m for root in modules for m in root.modules()):
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def run_training_step(model: Any, settings: TrainingSettings, device: str, memory: _LiveMemory) -> int:
    """Runs one forward and backward pass; returns the live bytes between the two."""
    from transformers import masking_utils

    ids = torch.zeros(settings.batch_size, settings.window, dtype=torch.long)
    # Fake positions cannot be read, and transformers then builds masks that it does not build for real ones.
    unmasked = mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None)
    all_words = mock.patch("ssetools.loss.LARGE_VOCABULARY", math.inf)  # which are likely, data would say
    with checkpointed_activations(model, settings.checkpoint_activations), unmasked, all_words:
        hidden = body_of(model)(input_ids=ids, use_cache=False)[0]
        between = memory.bytes
        hidden = hidden[:, :-1].flatten(0, 1)
        head = Head(model)
        head.block_bytes = BLOCK_BYTES[device]
        loss = _BlockwiseLoss.apply(hidden, head.weight, head.bias, ids[:, 1:].flatten(), head)
        del hidden
        loss.backward()
    return between


def _forward_8bit(module: Any, device: str, x: torch.Tensor) -> torch.Tensor:
    """Makes the temporary tensors of bitsandbytes' `Linear8bitLt`, without its kernels."""
    return _Product8bit.apply(x, module.weight, module.scales, module.bias, device)


class _Product8bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, codes: Any, scales: Any, bias: Any, device: str) -> torch.Tensor:
        ctx.kept = x, codes, scales  # bitsandbytes keeps the input, though a frozen weight needs no gradient
        if device == "cpu":
            return F.linear(x, codes.to(x.dtype).mul_((scales / 127)[:, None]), bias)
        rows = x.reshape(-1, x.shape[-1]).to(torch.float16)
        quantised = rows.to(torch.int8)
        product = torch.empty(len(rows), len(codes), dtype=torch.int32)
        del rows, quantised
        return product.to(x.dtype).view(*x.shape[:-1], len(codes))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, codes, scales = ctx.kept
        weight = codes.to(x.dtype, copy=True).mul_((scales / 127)[:, None])
        return torch.matmul(gradient.to(x.dtype), weight), None, None, None, None
