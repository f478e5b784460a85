"""Fine-tunes one language by any method: text in, trained adapter and its log out."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.models import evaluation_mode
from ssetools.text.streams import TextStream
from ssetools.text.windows import PackedWindows, bos_ids, pack_in_memory, pack_stream, pack_tokens
from ssetools.training.adapter import Adapter
from ssetools.training.loop import Run, TrainingSettings
from ssetools.training.methods import attach_method, check_method


@dataclass
class TrainingResult:
    """What `finetune` returns.

    Attributes:
        adapter: What was trained, attached, with its best weights.
        method: Name of the method.
        settings: The settings used.
        history: One dict per step, the columns of log.csv.
        best_step: Step whose weights were kept (the last, when there is no validation text).
        tokens: Tokens trained on.
        seconds: Wall time of this call.
        peak_memory_gib: Peak memory of the process (CPU) or of the device (CUDA) during this call.
        optimizer_bytes: Size of the optimiser's state.
    """

    adapter: Adapter
    method: str
    settings: TrainingSettings
    history: list[dict] = field(repr=False)
    best_step: int
    tokens: int
    seconds: float
    peak_memory_gib: float
    optimizer_bytes: int


def finetune(
    model: nn.Module,
    tokenizer,
    texts: Sequence[str] | TextStream,
    method: str = "lape",
    neurons: Sequence[torch.Tensor] | None = None,
    validation_texts: Sequence[str] = (),
    run_dir: str | Path | None = None,
    facts: Mapping | None = None,
    **settings,
) -> TrainingResult:
    """Trains on a language's text: by default, only the weights of the chosen neurons.

    Args:
        model: A causal language model, 8-bit for all methods but "ffn" and "full"; what is not trained is frozen.
        tokenizer: Its tokenizer.
        texts: Training documents, or a stream of them (`stream_texts`), of which as many tokens as are trained on are
            written to a file in the cache once and read from there.
        method: A name of `METHODS`: "lape", "random" or "random-uniform" (the neurons given decide what is trained),
            "lora", "lora-equal" (as many parameters as the neurons have), "ia3", "ffn" or "full".
        neurons: Neuron ids for each layer, for the methods that need them.
        validation_texts: Documents for choosing the best weights; none keeps the last.
        run_dir: Folder for `adapter.safetensors`, `adapter.json` and `log.csv`. A run killed at any step goes on
            from its last checkpoint there, to the same final weights as an uninterrupted one.
        facts: JSON-able facts for adapter.json, such as language and corpus.
        **settings: Fields of `TrainingSettings`.

    Returns:
        The result; the trained adapter is left attached to the model.

    Raises:
        ValueError: For an unknown method, text shorter than one window, or a stopped run with other settings.
        TrainingDiverged: When the loss is not finite, with advice.
    """
    check_method(method)
    settings = TrainingSettings(**settings).for_method(method)
    windows = _packed(tokenizer, texts, settings)
    validation = pack_tokens(tokenizer, validation_texts, settings.window) if validation_texts else []
    steps = _num_steps(len(windows), settings)
    _say_if_short(len(windows), steps, settings)
    began = time.monotonic()
    reset_peak_memory()
    torch.manual_seed(settings.seed)  # LoRA starts from random numbers
    adapter = attach_method(model, method, neurons)
    try:
        run = Run(adapter, windows, validation, steps, settings, run_dir, method)
        with evaluation_mode(model):
            run.train()
    except BaseException:
        adapter.detach()
        raise
    result = TrainingResult(
        adapter,
        method,
        settings,
        run.history,
        run.best_step,
        tokens=run.history[-1]["tokens"],
        seconds=time.monotonic() - began,
        peak_memory_gib=peak_memory_gib(),
        optimizer_bytes=run.optimizer_bytes(),
    )
    if run_dir and processes.is_main():
        adapter.save(
            run_dir,
            method=method,
            settings=asdict(settings),
            steps=steps,
            best_step=run.best_step,
            optimizer_bytes=result.optimizer_bytes,
            tokens=result.tokens,
            seconds=round(result.seconds, 1),
            peak_memory_gib=round(result.peak_memory_gib, 2),
            **(facts or {}),
        )
        run.finish()
    processes.wait()
    return result


def reset_peak_memory() -> None:
    """Starts the measurement of peak memory anew, where the system can (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Returns the peak memory since `reset_peak_memory`: of the device on CUDA, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, where a process begins with the peak of the one that started it
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**20
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _packed(tokenizer, texts: Sequence[str] | TextStream, settings: TrainingSettings) -> PackedWindows:
    budget = max(1, settings.max_tokens // settings.window)
    if isinstance(texts, TextStream):
        windows = pack_stream(tokenizer, texts, settings.window, budget)
    else:
        windows = pack_in_memory(tokenizer, texts, settings.window)
    if not len(windows):
        tokens = len(windows.tokens) + len(bos_ids(tokenizer))
        raise InvalidInput(
            f"The training text has {tokens} tokens, less than one window of {settings.window}: give more text, or a "
            "smaller window."
        )
    return windows


def _num_steps(windows: int, settings: TrainingSettings) -> int:
    budget = max(1, settings.max_tokens // settings.window)
    return max(1, min(windows * settings.epochs, budget) // _windows_per_step(settings))


def _windows_per_step(settings: TrainingSettings) -> int:
    return settings.batch_size * settings.gradient_accumulation * processes.count()


def _say_if_short(windows: int, steps: int, settings: TrainingSettings) -> None:
    """Says so when the text holds fewer tokens than are to be trained on, or than one step takes."""
    have, trained = (x * settings.window for x in (windows * settings.epochs, steps * _windows_per_step(settings)))
    if have >= max(trained, settings.max_tokens // settings.window * settings.window) or not processes.is_main():
        return
    passes = "1 pass" if settings.epochs == 1 else f"{settings.epochs} passes"
    said = f"The training text has {have:,} tokens ({passes}), and {settings.max_tokens:,} were asked for: "
    if have < trained:
        said += f"one step takes {trained:,}, so it is gone over again to fill it. A smaller batch would not need to."
    else:
        said += f"{trained:,} are trained on, in whole steps. More epochs would go over it again."
    print(said, flush=True)
