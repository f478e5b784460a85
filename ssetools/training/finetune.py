"""Fine-tunes one language by any method: text in, trained adapter and its log out."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.files import read_json, write_json
from ssetools.models import evaluation_mode
from ssetools.text.streams import TextStream
from ssetools.text.windows import PackedWindows, bos_ids, pack_in_memory, pack_stream, pack_tokens
from ssetools.training.adapter import Adapter, adapter_facts, check_scale
from ssetools.training.loop import Run, TrainingSettings, mean_loss
from ssetools.training.methods import METHODS, attach_method, check_method


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
        curve: From `choose_scale`, when the scale was chosen.
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
    curve: list[dict] = field(default_factory=list, repr=False)


def finetune(
    model: nn.Module,
    tokenizer,
    texts: Sequence[str] | TextStream,
    method: str = "lape",
    neurons: Sequence[torch.Tensor] | None = None,
    validation_texts: Sequence[str] = (),
    run_dir: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    scale: float | Literal["auto"] = 1.0,
    retention_texts: Mapping[str, Sequence[str]] | None = None,
    **settings: Any,
) -> TrainingResult:
    """Trains on a language's text: by default, only the weights of the chosen neurons.

    Args:
        model: A causal language model, 8-bit for all methods but "ffn" and "full"; what is not trained is frozen.
        tokenizer: Its tokenizer.
        texts: Training documents, or a stream of them (`stream_texts`), of which as many tokens as are trained on are
            written to a file in the cache once and read from there.
        method: A name of `METHODS`: "lape", "specific" or "subnetwork" (all train the neurons given), "lora", "lora-equal"
            (as many parameters as the neurons have), "ia3", "ffn" or "full".
        neurons: Neuron ids for each layer, for the methods that need them: `neurons["yo"]` of a NeuronSets, or as a
            control `neurons.random_like("yo")`, with "subnetwork".
        validation_texts: Documents for choosing the best weights; none keeps the last.
        run_dir: Folder for `adapter.safetensors`, `adapter.json` and `log.csv`. A run killed at any step goes on
            from its last checkpoint there, to the same final weights as an uninterrupted one.
        facts: JSON-able facts for adapter.json, such as language and corpus; "method" replaces the name above.
        scale: `adapter.scale` after training: a number, or "auto" to let `choose_scale` find it.
        retention_texts: Documents by language, for "auto": what the model has to keep, such as validation text in English
            and other well-served languages.
        **settings: Fields of `TrainingSettings`.

    Returns:
        The result; the trained adapter is left attached to the model.

    Raises:
        ValueError: For an unknown method, text shorter than one window, "auto" without the texts that it needs, or a
            stopped run with other settings.
        TrainingDiverged: When the loss is not finite, with advice.
    """
    check_method(method)
    if (METHODS[method].selection or "").startswith("random"):
        raise InvalidInput(
            f"Method {method!r} draws neurons, and finetune trains those that it is given: pass neurons.random_like(lang, "
            'seed) with method="subnetwork", or train with get_run or `ssetools finetune`, which draw.'
        )
    settings = TrainingSettings(**settings).for_method(method)
    if scale == "auto" and not (validation_texts and retention_texts):
        raise InvalidInput(
            'scale="auto" chooses by text that is not trained on: pass validation_texts= in the trained language and '
            "retention_texts={lang: texts} in languages that the model has to keep, or give a number as scale."
        )
    scale = scale if scale == "auto" else check_scale(scale)
    windows = _packed(tokenizer, texts, settings)
    validation = _scorable(pack_tokens(tokenizer, validation_texts, settings.window)) if validation_texts else []
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
        if scale == "auto":
            curve = choose_scale(adapter, tokenizer, validation_texts, retention_texts, window=settings.window)
        else:
            adapter.scale, curve = scale, []
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
        curve=curve,
    )
    if run_dir and processes.is_main():
        if curve:
            write_json(Path(run_dir) / SCALES_FILE, curve)
        adapter.save(
            run_dir,
            **{
                "method": method,
                "settings": asdict(settings),
                "steps": steps,
                "best_step": run.best_step,
                "optimizer_bytes": result.optimizer_bytes,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 1),
                "peak_memory_gib": round(result.peak_memory_gib, 2),
                **(facts or {}),
            },
        )
        run.finish()
    processes.wait()
    return result


SCALES = tuple(tenths / 10 for tenths in range(2, 11))
"""Scales that `choose_scale` tries."""

MEAN_LIMIT, WORST_LIMIT = 0.01, 0.03
"""The general limit: how much the loss in other languages may rise, as a share of the base's, on average and at worst."""

SCALES_FILE = "scales.json"
"""The file of a run that holds the curve of `choose_scale`."""

_BATCH_TOKENS = 1024


def choose_scale(
    adapter: Adapter,
    tokenizer,
    validation_texts: Sequence[str],
    retention_texts: Mapping[str, Sequence[str]],
    scales: Sequence[float] = SCALES,
    mean_limit: float = MEAN_LIMIT,
    worst_limit: float = WORST_LIMIT,
    window: int = 256,
) -> list[dict]:
    """Sets the scale with the lowest validation loss that keeps the other languages, by forward passes alone.

    Every text is scored on its own, after BOS. Among the scales at which the losses in the other languages rise by at
    most `mean_limit` on average and `worst_limit` at worst, the one with the lowest validation loss is set; the base,
    scale 0, is one of them. What was chosen, and what full scale would do, is printed.

    Args:
        adapter: A trained adapter, attached.
        tokenizer: The model's tokenizer.
        validation_texts: Documents in the trained language that were not trained on.
        retention_texts: Documents by language, such as English and other well-served languages.
        scales: Scales to try beside 0.
        mean_limit: Largest mean rise of the loss over the other languages, as a share of the base's loss.
        worst_limit: Largest rise in any of them.
        window: Tokens of a window at most; longer texts are cut into several.

    Returns:
        The curve, a dict for 0 and each scale: "scale", "validation_loss" (nats per token), and as shares of the base's
        loss "validation_change", "retention_changes" (by language), "mean_change" and "worst_change"; "within_limits".

    Raises:
        ValueError: If there is no text, or the adapter was taken off its model.
    """
    adapter.check_attached()
    target = _each_alone(tokenizer, validation_texts, window)
    others = {lang: _each_alone(tokenizer, texts, window) for lang, texts in retention_texts.items()}
    curve: list[dict] = []
    base: dict[str, float] = {}
    with evaluation_mode(adapter.model):
        for scale in dict.fromkeys([0.0, *map(float, scales)]):
            adapter.scale = scale
            loss = mean_loss(adapter.model, target, _BATCH_TOKENS)
            kept = {lang: mean_loss(adapter.model, windows, _BATCH_TOKENS) for lang, windows in others.items()}
            base = base or {"target": loss, **kept}
            changes = {lang: x / base[lang] - 1 for lang, x in kept.items()}
            mean, worst = sum(changes.values()) / len(changes), max(changes.values())
            row = {"scale": scale, "validation_loss": loss, "validation_change": loss / base["target"] - 1}
            row |= {"retention_changes": changes, "mean_change": mean, "worst_change": worst}
            within = mean <= mean_limit and worst <= worst_limit and loss < math.inf
            curve.append({**row, "within_limits": within})
    adapter.scale = best_scale(curve)
    if processes.is_main():
        print(_chosen(curve), flush=True)
    return curve


def best_scale(curve: Sequence[Mapping[str, Any]]) -> float:
    """Returns the scale with the lowest validation loss within the limits, from a curve of `choose_scale`."""
    return min((row for row in curve if row["within_limits"]), key=lambda row: row["validation_loss"])["scale"]


def scale_of_run(folder: str | Path, scale: float | str | None) -> float:
    """Returns the scale that is asked for of a finished run.

    Args:
        folder: The run's folder.
        scale: A number, None for the scale that was saved, or "auto" for the best of the curve in `scales.json`.

    Raises:
        FileNotFoundError: If there is no adapter, or "auto" finds no curve.
        ValueError: For a negative number.
    """
    if scale is None:
        return adapter_facts(folder).get("scale", 1.0)
    if scale != "auto":
        return check_scale(scale)
    path = Path(folder) / SCALES_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: `ssetools evaluate` with `--scale auto` makes it.")
    return best_scale(read_json(path))


def _chosen(curve: Sequence[Mapping[str, Any]]) -> str:
    """Says in words what was chosen, and what the largest scale would gain and cost."""

    def described(row):
        worst = max(row["retention_changes"], key=row["retention_changes"].__getitem__)
        return (
            f"validation loss {row['validation_loss']:.3f} ({row['validation_change']:+.1%}), other languages "
            f"{row['mean_change']:+.1%} on average and {row['worst_change']:+.1%} at worst ({worst})"
        )

    rows = {row["scale"]: row for row in curve}
    scale, full = best_scale(curve), max(rows)
    said = f"Scale {scale:g}: {described(rows[scale])}."
    if scale == 0:
        said = (
            "Scale 0, the base: no larger scale lowers the validation loss and keeps the other languages within the "
            "limits. Train at a lower learning rate, or give a number as scale."
        )
    return said if scale == full else f"{said} At scale {full:g}: {described(rows[full])}."


def _each_alone(tokenizer, texts: Sequence[str], window: int) -> list[torch.Tensor]:
    return _scorable([x for text in texts if text.strip() for x in pack_tokens(tokenizer, [text], window)])


def _scorable(windows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves out windows of one token, in which no token is predicted."""
    found = [window for window in windows if len(window) > 1]
    if not found:
        raise InvalidInput("The validation text has no token to predict: give more of it, or none.")
    return found


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
