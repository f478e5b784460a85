"""What a run will need in memory, before anything is loaded.

The model is built from its configuration alone, of tensors that have shapes but no data, and one training step is
run on it while every tensor's birth and death is followed. So the answer holds for any family and any method, and for
whatever the backward pass really keeps.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssetools.errors import InvalidInput
from ssetools.loss import _BLOCK_BYTES, Head, _BlockwiseLoss
from ssetools.models import as_dtype, body_of, choose_dtype
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.text.hub import hub_reachable, quiet_transformers
from ssetools.training.loop import TrainingSettings, check_optimizer, checkpointed_activations
from ssetools.training.methods import METHODS, attach_method, check_method

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
        raise InvalidInput(f"Method {method!r} trains the weights themselves: plan it with load_in_8bit=False.")
    if METHODS[method].needs_neurons and neurons is None:
        raise InvalidInput(f"Method {method!r} needs neurons: their number, or their ids for each layer.")
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
        raise InvalidInput(
            f"There is no configuration for {model!r}: use {', '.join(KNOWN_MODELS)}, a local transformers folder, or "
            "the id of a hub model that can be reached."
        ) from error


def _spread(model, neurons):
    if not isinstance(neurons, int):
        return neurons
    blocks = find_ffn_blocks(model)
    most = sum(block.num_neurons for block in blocks)
    if not 0 < neurons <= most:
        raise InvalidInput(f"{neurons} neurons cannot be trained: this model has {most:,}.")
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


# --- unloaded ---


def as_if_on_cpu(mode, *modules):
    """Makes shape-only tensors say that they lie on a CPU: operators there keep what they keep on real hardware."""
    made: dict[int, torch.Tensor] = {}
    for module in (m for whole in modules for m in whole.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    bare = tensor.detach()
                    fake = FakeTensor(mode, bare, torch.device("cpu")) if bare.is_meta else mode.from_tensor(bare)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fake
                tensors[name] = made[id(tensor)]


def built_without_data(config, dtype, load_in_8bit, device):
    """Builds a model from its configuration, frozen; call it under `torch.device("meta")`."""
    import transformers

    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    model.config.use_cache = False
    if load_in_8bit:
        head = model.get_output_embeddings()
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and module is not head:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, _Linear8bit(module, device))
    return model


class _Linear8bit(nn.Linear):
    """Stands for bitsandbytes' `Linear8bitLt`: the same tensors, kept and temporary, without its kernels."""

    def __init__(self, like: nn.Linear, device: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = like.in_features, like.out_features, like.bias
        codes = torch.empty(like.weight.shape, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", torch.empty(like.out_features))
        self.planned_for = device

    def forward(self, x):
        return _Product8bit.apply(x, self.weight, self.scales, self.bias, self.planned_for)


class _Product8bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes, scales, bias, device):
        ctx.kept = x, codes, scales  # bitsandbytes keeps the input, though a frozen weight needs no gradient
        if device == "cpu":
            return F.linear(x, codes.to(x.dtype).mul_((scales / 127)[:, None]), bias)
        rows = x.reshape(-1, x.shape[-1]).to(torch.float16)
        quantised = rows.to(torch.int8)
        whole = torch.empty(len(rows), len(codes), dtype=torch.int32)
        del rows, quantised
        return whole.to(x.dtype).view(*x.shape[:-1], len(codes))

    @staticmethod
    def backward(ctx, gradient):
        x, codes, scales = ctx.kept
        weight = codes.to(x.dtype, copy=True).mul_((scales / 127)[:, None])
        return torch.matmul(gradient.to(x.dtype), weight), None, None, None, None


class _PlannedHead(Head):
    """The head, cut into the blocks of the device that is planned for."""

    def __init__(self, model, device):
        super().__init__(model)
        self.planned_for = device

    def blocks(self, tokens):
        size = max(16, _BLOCK_BYTES[self.planned_for] // (4 * tokens))
        return [slice(i, min(i + size, self.vocabulary)) for i in range(0, self.vocabulary, size)]


def one_step(model, settings, device, alive) -> int:
    """Runs one forward and backward pass; returns the bytes alive between the two."""
    ids = torch.zeros(settings.batch_size, settings.window, dtype=torch.long)
    with checkpointed_activations(model, settings.checkpoint_activations), _one_text_per_window():
        hidden = body_of(model)(input_ids=ids, use_cache=False)[0]
        between = alive.bytes
        hidden = hidden[:, :-1].flatten(0, 1)
        head = _PlannedHead(model, device)
        loss = _BlockwiseLoss.apply(hidden, head.weight, head.bias, ids[:, 1:].flatten(), head)
        del hidden
        loss.backward()
    return between


@contextlib.contextmanager
def _one_text_per_window():
    """Tells transformers what it reads off real positions: windows are not packed, so no mask [window, window]."""
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


class Alive(TorchDispatchMode):
    """Follows the storages that are alive.

    Attributes:
        bytes: Of all storages born since the start and not yet gone.
        most: The largest that `bytes` has been since `restart`.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.most = 0
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def restart(self) -> int:
        self.most = self.bytes
        return self.bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor.untyped_storage())
        return found

    def _born(self, storage):
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def gone(_):
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, gone), size
        self.bytes += size
        self.most = max(self.most, self.bytes)
