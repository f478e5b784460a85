"""What a result file says about its making: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("ssetools", "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "peft", "numpy")


def provenance() -> dict:
    """Returns package versions, the commit of a source checkout (None elsewhere) and the kind of machine."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "hardware": gpu or f"{platform.machine()} CPU with {_instructions()}, {os.cpu_count()} cores",
    }


def _instructions() -> str:
    """Names the CPU's vector instructions: two kinds round differently, and perplexities differ by a few in 10,000."""
    import torch

    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return torch.backends.cpu.get_cpu_capability() + (" and AMX" if amx else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None
