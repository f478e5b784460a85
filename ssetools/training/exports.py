"""A subnetwork written as a standard LoRA checkpoint: each slice is a LoRA pair whose other half is one-hot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput, MissingPackage
from ssetools.files import save_tensors, whole_file
from ssetools.models import model_source
from ssetools.neurons.ffn import Projection, find_ffn_blocks

UNIFORM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that servers such as vLLM compile for; they read one rank and one alpha for all modules of an adapter."""


def write_peft(
    model: nn.Module, slices: Sequence[tuple[Projection, torch.Tensor, torch.Tensor]], folder: str | Path, uniform: bool
) -> Path:
    """Writes slices as a PEFT LoRA checkpoint of the same function.

    Gate and up: `lora_B` is one-hot [out, k], `lora_A` the rows [k, hidden]. Down: `lora_A` is one-hot [k, in],
    `lora_B` the columns [hidden, k]. Rank k per module, scaling 1.

    Args:
        model: The base.
        slices: For each slice its projection, the neurons' places along the module's axis (LongTensor [k]), and its
            delta, FloatTensor [k, hidden] for gate and up, [hidden, k] for down.
        folder: Folder to write.
        uniform: Whether to pad every pair with zeros to one rank of `UNIFORM_RANKS`, alpha equal to it, instead of
            naming a rank for each module.

    Raises:
        ValueError: If a module needs a higher rank than the largest uniform one.
    """
    from peft import LoraConfig

    pairs = lora_pairs(slices)
    ranks = {path: len(a) for path, (a, _) in pairs.items()}
    if uniform:
        rank = _uniform_rank(ranks)
        pairs = {
            path: (F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - b.shape[1])))
            for path, (a, b) in pairs.items()
        }
        patterns = {}
    else:
        rank = max(ranks.values())
        patterns = {"rank_pattern": ranks, "alpha_pattern": ranks}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        fan_in_fan_out=any(p.transposed or _is_converted_conv1d(p.module) for p, _, _ in slices),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model_source(model)["model"],
        inference_mode=True,
        **patterns,
    )
    tensors = {
        f"base_model.model.{path}.lora_{half}.weight": tensor.contiguous()
        for path, pair in pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    with whole_file(folder) as scratch:
        scratch.mkdir()
        config.save_pretrained(scratch)
        save_tensors(scratch / "adapter_model.safetensors", tensors, {"format": "pt"})
    return Path(folder)


def lora_pairs(slices) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns each slice's LoRA pair (A [k, in], B [out, k]) by module path; the slices of a fused module share one."""
    parts: dict[str, list] = {}
    for projection, columns, delta in slices:
        parts.setdefault(projection.path, []).append((projection, columns.cpu(), delta.detach().cpu()))
    pairs = {}
    for path, pieces in parts.items():
        projection = pieces[0][0]
        columns = torch.cat([columns for _, columns, _ in pieces])
        one_hot = torch.zeros(len(columns), projection.width)
        one_hot[torch.arange(len(columns)), columns] = 1.0
        delta = torch.cat([delta for _, _, delta in pieces])
        pairs[path] = (one_hot, delta) if projection.axis else (delta, one_hot.T)
    return pairs


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


def _is_converted_conv1d(module: nn.Module) -> bool:
    return getattr(getattr(module, "source_cls", None), "__name__", "") == "Conv1D"


# --- gguf_lora ---


_FAMILIES = {"mistral": "llama", "gpt_neox": "gptneox", "cohere": "command-r", "gemma3_text": "gemma3"}
"""Names that llama.cpp gives to families, where they are not transformers' own."""


def write_gguf_lora(model: nn.Module, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], path: str | Path) -> Path:
    """Writes LoRA pairs as a GGUF adapter, in float16.

    llama.cpp reads each module's rank off its tensors and scales by alpha / rank, or not at all where alpha is 0. So
    alpha is 0, and every module has a rank of its own.

    Args:
        model: The base.
        pairs: A [k, in] and B [out, k] by module path, as from `lora_pairs`.
        path: File to write.

    Raises:
        ModuleNotFoundError: If the package `gguf` is not installed.
        ValueError: If llama.cpp has no name for the family or for one of its modules.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingPackage('GGUF needs the package "gguf": pip install "ssetools[embedded]"') from error

    family = model.config.get_text_config().model_type
    name = _FAMILIES.get(family, family)
    known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    if name not in known:
        raise InvalidInput(f"llama.cpp has no model family {name!r} ({family}): export with --format peft or merged.")
    names = gguf.get_tensor_name_map(known[name], len(find_ffn_blocks(model)))
    with whole_file(path) as scratch:
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
