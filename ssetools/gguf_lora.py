"""A subnetwork as a LoRA adapter in GGUF, which llama.cpp loads beside the base's own GGUF file (`--lora FILE`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ssetools.ffn import Projection, find_ffn_blocks
from ssetools.paths import whole_file
from ssetools.peft_checkpoint import lora_pairs

_FAMILIES = {"mistral": "llama", "gpt_neox": "gptneox", "cohere": "command-r", "gemma3_text": "gemma3"}
"""Names that llama.cpp gives to families, where they are not transformers' own."""


def write_gguf_lora(
    model: nn.Module, slices: Sequence[tuple[Projection, torch.Tensor, torch.Tensor]], path: str | Path
) -> Path:
    """Writes slices as a GGUF adapter of the same function, in float16.

    llama.cpp reads each module's rank off its tensors and scales by alpha / rank, or not at all where alpha is 0. So
    alpha is 0, and every module has the rank of its number of neurons.

    Args:
        model: The base.
        slices: As in `write_peft`.
        path: File to write.

    Raises:
        ModuleNotFoundError: If the package `gguf` is not installed.
        ValueError: If llama.cpp has no name for the family or for one of its modules.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('GGUF needs the package "gguf": pip install "ssetools[embedded]"') from error

    family = model.config.model_type
    name = _FAMILIES.get(family, family)
    known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    if name not in known:
        raise ValueError(f"llama.cpp has no model family {name!r} ({family}): export with --format peft or merged.")
    names = gguf.get_tensor_name_map(known[name], len(find_ffn_blocks(model)))
    with whole_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        for module, pair in lora_pairs(slices).items():
            tensor = names.get_name(module)
            if tensor is None:
                raise ValueError(
                    f"llama.cpp has no name for {module} of {family}: export with --format peft or merged."
                )
            for half, values in zip("ab", pair, strict=True):
                writer.add_tensor(f"{tensor}.weight.lora_{half}", values.contiguous().half().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)
