"""What a run will need in memory, before anything is loaded.

The model is built from its configuration alone, of tensors that have shapes but no data, and one training step is
run on it while every tensor's birth and death is followed. So the answer holds for any family and any method, and for
whatever the backward pass really keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ssetools.ffn import find_ffn_blocks
from ssetools.hub import hub_reachable, quiet_transformers
from ssetools.loop import TrainingSettings
from ssetools.loss import body_of
from ssetools.memory import check_optimizer
from ssetools.methods import METHODS, attach_method, check_method
from ssetools.models import as_dtype, choose_dtype
from ssetools.unloaded import Alive, as_if_on_cpu, built_without_data, one_step

GIB = 2**30
_TOKENIZER_BYTES = 1200
"""Of a word in a BPE tokenizer of the `tokenizers` library, its merges included; measured on Gemma's 262,144 words."""
_MIN_8BIT_STATE, _STATE_BLOCK = 4096, 256

_GEMMA = {"model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048}
_GEMMA |= {"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
_LLAMA = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336}
_LLAMA |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
_NEMO = {"model_type": "mistral", "vocab_size": 131_072, "hidden_size": 5120, "intermediate_size": 14_336}
_NEMO |= {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_AYA = {"model_type": "cohere", "vocab_size": 256_000, "hidden_size": 4096, "intermediate_size": 14_336}
_AYA |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "logit_scale": 0.125}
KNOWN_MODELS = {
    "gemma-3-270m": {**_GEMMA, "sliding_window": 512, "tie_word_embeddings": True},
    "meta-llama/Llama-3.1-8B": {**_LLAMA, "tie_word_embeddings": False},
    "mistralai/Mistral-Nemo-Base-2407": {**_NEMO, "tie_word_embeddings": False},
    "CohereLabs/aya-expanse-8b": {**_AYA, "tie_word_embeddings": True},
}
"""Shapes of models that can be planned for without the hub, by id."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a training run needs, in bytes.

    Attributes:
        model: Name of the model.
        num_weights: Numbers in the model.
        num_trained: Numbers that are trained.
        weights: The frozen model, with its scales where it is 8-bit.
        trained: What the method attaches: float32 deltas or adapters; masters and a copy of the base for whole weights.
        gradients: Of the trained numbers, float32.
        optimizer: The optimiser's state.
        kept: The best trained numbers so far, which the loop keeps in main memory.
        tokenizer: The vocabulary, in main memory too.
        activations: What the forward pass leaves for the backward pass, at the batch's full size.
        step: The most that is alive at one moment of a step beyond weights, trained numbers and optimiser state:
            activations, the loss, gradients, and what comes and goes.
        operations: Floating-point operations for each token that is trained on, attention's own left out. What the
            hardware does in a second, divided by it, is a bound on tokens per second.
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
    kept: int
    tokenizer: int
    activations: int
    step: int
    operations: int
    device: str
    dtype: str

    @property
    def peak(self) -> int:
        """The peak of the device's memory while training, in bytes; the interpreter and its libraries excluded.

        On Linux a process on the CPU holds more than it needs, since glibc keeps much of what is freed; the environment
        variable MALLOC_MMAP_THRESHOLD_=262144 makes it give memory back. Loading can briefly take more than training.
        """
        main_memory = self.kept + self.tokenizer if self.device == "cpu" else 0
        return self.weights + self.trained + self.optimizer + main_memory + self.step

    def __str__(self) -> str:
        rows = [
            ("weights", self.weights, f"{self.num_weights:,} numbers"),
            (
                "trained numbers",
                self.trained,
                f"{self.num_trained:,} ({100 * self.num_trained / self.num_weights:.2f}%)",
            ),
            ("optimiser state", self.optimizer, ""),
            ("a training step", self.step, f"of it activations {self.activations / GIB:.2f}"),
            ("gradients", self.gradients, "within the step"),
            ("tokenizer", self.tokenizer, "in main memory"),
            ("peak", self.peak, f"on {self.device}, {self.dtype}"),
        ]
        lines = [f"{name:<16} {size / GIB:8.2f} GiB   {note}".rstrip() for name, size, note in rows]
        return "\n".join([*lines, f"{'operations':<16} {self.operations / 1e9:8.2f} G for each token"])


def plan_memory(
    model: str,
    neurons: int | Sequence[torch.Tensor] | None = None,
    method: str = "lape",
    load_in_8bit: bool = True,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    **settings,
) -> MemoryPlan:
    """Predicts the memory of a training run from the model's configuration, without loading a weight.

    Args:
        model: A name of `KNOWN_MODELS` (or its last part), a local folder, or a hub id.
        neurons: How many neurons are trained, spread evenly over the layers; or their ids for each layer.
        method: A name of `METHODS`.
        load_in_8bit: As in `load_model`.
        dtype: Of weights that are not 8-bit; None takes bfloat16 on "cuda", and `load_model`'s choice on "cpu".
        device: "cuda" or "cpu"; None takes what is here.
        **settings: Fields of `TrainingSettings`: batch_size, window, optimizer, checkpoint_activations count.

    Returns:
        The plan.

    Raises:
        ValueError: For an unknown model or method, neurons that do not fit, or a method that the base does not allow.
    """
    check_method(method)
    settings = TrainingSettings(**settings)
    check_optimizer(settings.optimizer)
    if load_in_8bit and not METHODS[method].on_8bit:
        raise ValueError(f"Method {method!r} trains the weights themselves: plan it with load_in_8bit=False.")
    if METHODS[method].needs_neurons and neurons is None:
        raise ValueError(f"Method {method!r} needs neurons: their number, or their ids for each layer.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = config_of(model)
    if dtype is None:
        dtype = torch.bfloat16 if device == "cuda" else choose_dtype(config, device)
    dtype = as_dtype(dtype)
    with Alive() as alive:
        with torch.device("meta"):
            base = built_without_data(config, dtype, load_in_8bit, device)
        num_weights, weights = sum(p.numel() for p in base.parameters()), alive.bytes
        adapter = attach_method(base, method, _spread(base, neurons))
        trained = alive.bytes - weights
        sizes = [p.numel() for p in adapter.parameters()]
        operations = _operations(base, settings.checkpoint_activations, not METHODS[method].on_8bit, sum(sizes))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            as_if_on_cpu(mode, base, adapter)
            before = alive.restart()
            activations = one_step(base, settings, device, alive) - before
            step = alive.most - before
        adapter.detach()
    return MemoryPlan(
        model,
        num_weights,
        sum(sizes),
        weights,
        trained,
        gradients=4 * sum(sizes),
        optimizer=sum(_state_bytes(size, settings.optimizer) for size in sizes),
        kept=4 * sum(sizes),
        tokenizer=_TOKENIZER_BYTES * config.get_text_config().vocab_size,
        activations=activations,
        # The optimiser's own step holds all gradients, and on a GPU about as much again while it works.
        step=max(step, 4 * sum(sizes) * (2 if device == "cuda" else 1)),
        operations=operations,
        device=device,
        dtype=str(dtype)[6:] + (" and 8-bit weights" if load_in_8bit else ""),
    )


def config_of(model: str):
    """Returns the configuration of a known model, a local folder or a hub id.

    Raises:
        ValueError: If there is none.
    """
    import transformers

    for name, facts in KNOWN_MODELS.items():
        if model.lower() in (name.lower(), name.split("/")[-1].lower()):
            facts = dict(facts)
            return transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    hub_reachable()  # without a network the libraries ask their caches, and do not retry for half a minute
    try:
        with quiet_transformers():
            return transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no configuration for {model!r}: use {', '.join(KNOWN_MODELS)}, a local transformers folder, or "
            "the id of a hub model that can be reached."
        ) from error


def _spread(model, neurons):
    if not isinstance(neurons, int):
        return neurons
    blocks = find_ffn_blocks(model)
    most = sum(block.num_neurons for block in blocks)
    if not 0 < neurons <= most:
        raise ValueError(f"{neurons} neurons cannot be trained: this model has {most:,}.")
    share, more = divmod(neurons, len(blocks))
    return [torch.arange(share + (layer < more)) for layer in range(len(blocks))]


def _operations(base, recomputed: bool, in_place: bool, trained: int) -> int:
    """A product with a matrix takes two operations for each weight: forward, and again for the gradient it passes on."""
    products = sum(p.numel() for p in body_of(base).parameters() if p.ndim == 2)
    products -= base.get_input_embeddings().weight.numel()  # looked up, not multiplied
    head = base.get_output_embeddings().weight.numel()
    frozen = 2 * ((2 + recomputed) * products + 2 * head)
    return frozen + trained * (2 if in_place else 6 + 2 * recomputed)  # with the gradient of the weight itself


def _state_bytes(size: int, optimizer: str) -> int:
    if optimizer == "adamw8bit" and size >= _MIN_8BIT_STATE:
        return 2 * (size + 4 * -(-size // _STATE_BLOCK))
    return 8 * size
