"""A model of tensors that have shapes and no data, and what is alive while it takes a training step."""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssetools.hub import quiet_transformers
from ssetools.loss import _BLOCK_BYTES, Head, _BlockwiseLoss, body_of
from ssetools.memory import checkpointed_activations


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
