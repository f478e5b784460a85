"""LoRA pairs written as a PEFT checkpoint or a GGUF adapter, for programs that know nothing of neurons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn import functional as F

from ssetools.errors import InvalidInput, MissingPackage
from ssetools.files import atomic_write, save_tensors

LoraPairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A [rank, inputs] and B [outputs, rank] by the path of the module, to whose weight `B @ A` is added."""

UNIFORM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that servers such as vLLM compile for; they read one rank and one alpha for all modules of an adapter."""


def write_peft(
    pairs: LoraPairs, folder: str | Path, base: str, uniform_rank: bool = False, fan_in_fan_out: bool = False
) -> Path:
    """Writes LoRA pairs as a PEFT checkpoint, with scaling 1.

    Args:
        pairs: What is added, by module path.
        folder: Folder to write.
        base: Name of the base model.
        uniform_rank: Whether to pad every pair with zeros to one rank of `UNIFORM_RANKS`, instead of naming a rank for
            each module.
        fan_in_fan_out: Whether the base stores weights as [in, out].

    Raises:
        ValueError: If a module needs a higher rank than the largest uniform one.
    """
    from peft import LoraConfig

    ranks = {path: len(a) for path, (a, _) in pairs.items()}
    rank = _uniform_rank(ranks) if uniform_rank else max(ranks.values())
    patterns = {} if uniform_rank or len(set(ranks.values())) == 1 else ranks
    if uniform_rank:
        pairs = {
            path: (F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - b.shape[1])))
            for path, (a, b) in pairs.items()
        }
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        fan_in_fan_out=fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
    )
    tensors = {
        f"base_model.model.{path}.lora_{half}.weight": tensor.contiguous()
        for path, pair in pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    with atomic_write(folder) as scratch:
        scratch.mkdir()
        config.save_pretrained(str(scratch))
        save_tensors(scratch / "adapter_model.safetensors", tensors, {"format": "pt"})
    return Path(folder)


def _uniform_rank(ranks: Mapping[str, int]) -> int:
    widest = max(ranks, key=ranks.__getitem__)
    if ranks[widest] > UNIFORM_RANKS[-1]:
        raise InvalidInput(
            f"{widest} needs rank {ranks[widest]}, one for each trained neuron, and vLLM takes no rank above "
            f"{UNIFORM_RANKS[-1]} ({sum(rank > UNIFORM_RANKS[-1] for rank in ranks.values())} of {len(ranks)} modules "
            "need more). Export without a uniform rank (PEFT reads one for each module), merge into the "
            "16-bit model, or train fewer neurons in a layer (a lower top_rate)."
        )
    return next(rank for rank in UNIFORM_RANKS if rank >= ranks[widest])


_FAMILIES = {"mistral": "llama", "gpt_neox": "gptneox", "cohere": "command-r", "gemma3_text": "gemma3"}
"""Names that llama.cpp gives to families, where they are not transformers' own."""


def write_gguf_lora(pairs: LoraPairs, path: str | Path, family: str, num_layers: int) -> Path:
    """Writes LoRA pairs as a GGUF adapter, in float16.

    llama.cpp reads each module's rank off its tensors and scales by alpha / rank, or not at all where alpha is 0. So
    alpha is 0, and every module has a rank of its own.

    Args:
        pairs: What is added, by module path.
        path: File to write.
        family: `model_type` of the base in transformers.
        num_layers: Layers of the base.

    Raises:
        ModuleNotFoundError: If the package `gguf` is not installed.
        ValueError: If llama.cpp has no name for the family or for one of its modules.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingPackage('GGUF needs the package "gguf": pip install "ssetools[embedded]"') from error

    name = _FAMILIES.get(family, family)
    known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    if name not in known:
        raise InvalidInput(f"llama.cpp has no model family {name!r} ({family}): export with --format peft or merged.")
    names = gguf.get_tensor_name_map(known[name], num_layers)
    with atomic_write(path) as scratch:
        writer = gguf.GGUFWriter(scratch, name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        for module, pair in pairs.items():
            tensor = names.get_name(re.sub("(language|text)_model\\.", "", module))  # of a multimodal wrapper
            if tensor is None:
                raise InvalidInput(
                    f"llama.cpp has no name for {module} of {family}: export with --format peft or merged."
                )
            for half, values in zip("ab", pair, strict=True):
                writer.add_tensor(f"{tensor}.weight.lora_{half}", values.contiguous().half().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)
