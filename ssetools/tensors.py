"""Safetensors files with JSON metadata, written whole and read with an error that names the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from ssetools.paths import whole_file


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> Path:
    """Writes tensors and metadata (strings as they are, anything else as JSON) to one safetensors file."""
    strings = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in metadata.items()}
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as scratch:
        scratch.write_bytes(safetensors.torch.save(packed, strings))
    return Path(path)


def load_tensors(path: str | Path, kind: str, needed: Sequence[str] = ()) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads a safetensors file.

    Args:
        path: The file.
        kind: What it should be, for the error ("a neuron set").
        needed: Names of tensors that must be there.

    Returns:
        `(tensors, metadata)`; metadata values that are JSON are decoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or is not what `kind` says.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path} ({kind}).")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            strings = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not {kind}, or is damaged: {error}.") from error
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"{path} is not {kind}: it has no {missing}.")
    return tensors, {key: _decoded(value) for key, value in strings.items()}


def digest(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 of a tensor's numbers."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _decoded(value: str):
    return json.loads(value) if value[:1] in '[{"' or value in ("null", "true", "false") else value
