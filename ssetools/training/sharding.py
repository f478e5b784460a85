"""A 16-bit base spread over several processes (FSDP): each holds a share, and gathers a layer when it computes it.

For models that fit no single device. What is trained stays whole in every process and is synchronised as always
(`processes.average_gradients`); of the frozen base nothing but its weights travels.
"""

from __future__ import annotations

import torch
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.loss import body_of
from ssetools.models import has_8bit_layers, load_model
from ssetools.neurons.ffn import decoder_layers


def load_sharded(name: str, load_in_8bit: bool = False, dtype: torch.dtype | str | None = None):
    """Loads a model in main memory and spreads it over the processes; see `load_model` and `shard_model`.

    Every process reads the whole model, a layer of which at a time goes to its device.

    Returns:
        `(model, tokenizer)`.

    Raises:
        ValueError: For an 8-bit base, or a single process.
    """
    _check(load_in_8bit)
    model, tokenizer = load_model(name, load_in_8bit=False, dtype=dtype, device_map={"": "cpu"})
    return shard_model(model), tokenizer


def shard_model(model: nn.Module) -> nn.Module:
    """Spreads the weights of a frozen model over all processes, and moves each share to the process's device.

    Embeddings, final norm and head are gathered for the length of a step, each layer only while it computes, in the
    backward pass again. So of a model of N bytes a process holds N / processes, and during a step these ends and a
    layer besides. All processes have to make equally many forward passes (`processes.in_step`).

    Args:
        model: A causal language model in 16 or 32 bits, the same in all processes, nothing attached. `finetune` and
            `profile_languages` take it afterwards; saved adapters are the same as those of a whole model.

    Returns:
        The model.

    Raises:
        ValueError: For an 8-bit base, or a single process.
    """
    _check(has_8bit_layers(model))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    model.requires_grad_(False)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # The loss reads the head's weight after the body has run, and never calls the head: so the head is gathered with
    # the body, to which it does not belong. A tied head shares its weight with the embeddings, which are there anyway.
    body = body_of(model)
    body.head_gathered_here = model.get_output_embeddings()
    fully_shard(body, mesh=mesh, reshard_after_forward=False)
    del body.head_gathered_here
    model.ssetools_sharded = True
    return model


def _check(in_8bit: bool) -> None:
    if in_8bit:
        raise InvalidInput(
            "An 8-bit base cannot be sharded: bitsandbytes keeps the scales of an 8-bit layer beside its weight, outside "
            "of what FSDP splits and gathers. Load it in 16 bits (--16-bit), or, if it fits one device in 8 bits, leave "
            "sharding out: several processes share the text all the same."
        )
    if processes.count() == 1:
        raise InvalidInput(
            "Sharding spreads a model over several processes, and there is one: start the command with "
            "`accelerate launch --num_processes N -m ssetools ...` (GPUs) or `torchrun --nproc_per_node N -m ssetools ...`."
        )
