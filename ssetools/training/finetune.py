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
from ssetools.files import write_json
from ssetools.models import evaluation_mode
from ssetools.progress import progress
from ssetools.text.streams import TextStream
from ssetools.text.windows import PackedWindows, bos_ids, pack_in_memory, pack_stream, pack_tokens
from ssetools.training.adapter import Adapter, check_scale
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
    history: list[dict[str, Any]] = field(repr=False)
    best_step: int
    tokens: int
    seconds: float
    peak_memory_gib: float
    optimizer_bytes: int
    curve: list[dict[str, Any]] = field(default_factory=list, repr=False)


def finetune(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | TextStream,
    method: str = "subnetwork",
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
        method: A name of `METHODS`: "subnetwork", "specific" or "lape" (all train the neurons given, each at its own rate),
            "lora", "lora-equal" (as many parameters as the neurons have), "ia3", "ffn" or "full".
        neurons: Neuron ids for each layer, for the methods that need them: `neurons["yo"]` of a NeuronSets, or as a
            control `neurons.random_like("yo")`, with "subnetwork".
        validation_texts: Documents for choosing the best weights; none keeps the last.
        run_dir: Folder for `adapter.safetensors`, `adapter.json` and `log.csv`, and `scales.json` with "auto". A run
            killed at any step resumes from its last checkpoint there, to the same weights as an uninterrupted one.
        facts: JSON-able facts for adapter.json, such as language and corpus; "method" replaces the name above.
        scale: `adapter.scale` after training: a number, or "auto" to let `choose_scale` find it.
        retention_texts: Documents by language, for "auto": what the model has to keep, such as validation text in
            English and other well-served languages.
        **settings: Fields of `TrainingSettings`.

    Returns:
        The result; the trained adapter is left attached to the model.

    Raises:
        ValueError: For an unknown method, text shorter than one window, "auto" without the texts that it needs, or an
            interrupted run with other settings.
        TrainingDiverged: When the loss is not finite, with advice.
    """
    check_method(method)
    if (METHODS[method].selection or "").startswith("random"):
        raise InvalidInput(
            f"Method {method!r} draws neurons, and finetune trains those that it is given: pass neurons.random_like(lang, "
            'seed) with method="subnetwork", or train with get_run or `ssetools finetune`, which draw.'
        )
    if scale == "auto" and not (validation_texts and retention_texts):
        raise InvalidInput(
            'scale="auto" chooses by text that is not trained on: pass validation_texts= in the trained language and '
            "retention_texts={lang: texts} in languages that the model has to keep, or give a number as scale."
        )
    number = 1.0 if scale == "auto" else check_scale(scale)
    training = TrainingSettings(**settings).for_method(method)
    windows = _packed(tokenizer, texts, training)
    validation = _scorable(pack_tokens(tokenizer, validation_texts, training.window)) if validation_texts else []
    steps = _num_steps(len(windows), training)
    began = time.monotonic()
    reset_peak_memory()
    torch.manual_seed(training.seed)  # LoRA starts from random numbers
    adapter = attach_method(model, method, neurons)
    curve = []
    try:
        run = Run(adapter, windows, validation, steps, training, run_dir, method)
        with evaluation_mode(model):
            run.train()
        adapter.scale = number
        if scale == "auto":
            curve = choose_scale(adapter, tokenizer, validation_texts, retention_texts or {}, window=training.window)
    except BaseException:
        adapter.detach()
        raise
    costs = (time.monotonic() - began, peak_memory_gib(), run.optimizer_bytes())
    tokens = run.history[-1]["tokens"]
    result = TrainingResult(adapter, method, training, run.history, run.best_step, tokens, *costs, curve)
    if run_dir and processes.is_main():
        if curve:
            write_json(Path(run_dir) / "scales.json", curve)
        about = {name: getattr(result, name) for name in ("method", "best_step", "optimizer_bytes", "tokens")}
        about |= {"settings": asdict(training), "steps": steps, "seconds": round(result.seconds, 1)}
        adapter.save(run_dir, **about | {"peak_memory_gib": round(result.peak_memory_gib, 2), **(facts or {})})
        run.finish()
    processes.state().wait_for_everyone()
    return result


SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Scales that `choose_scale` tries."""

MEAN_LIMIT, WORST_LIMIT = 0.01, 0.03
"""The general limit: how much the loss in other languages may rise, as a share of the base's, on average and at worst."""

_BATCH_TOKENS = 1024


def choose_scale(
    adapter: Adapter,
    tokenizer: Any,
    validation_texts: Sequence[str],
    retention_texts: Mapping[str, Sequence[str]],
    scales: Sequence[float] = SCALES,
    mean_limit: float = MEAN_LIMIT,
    worst_limit: float = WORST_LIMIT,
    window: int = 256,
) -> list[dict[str, Any]]:
    """Sets the scale with the lowest validation loss that keeps the other languages, by forward passes alone.

    Every text is scored on its own, after BOS. Of the scales within the limits the one with the lowest validation loss is
    set; the base, scale 0, is one of them. What was chosen, and what full scale would do, is printed.

    Args:
        adapter: A trained adapter; a ValueError if it was taken off its model.
        tokenizer: The model's tokenizer.
        validation_texts: Documents in the trained language that were not trained on.
        retention_texts: Documents by language, such as English and other well-served languages, none without text.
        scales: Scales to try beside 0.
        mean_limit: Largest mean rise of the loss over the other languages, as a share of the base's loss.
        worst_limit: Largest rise in any of them.
        window: Tokens of a window at most; longer texts are cut into several.

    Returns:
        The curve, a dict for 0 and each scale: "scale", "validation_loss" (nats per token), and as shares of the base's
        loss "validation_change", "retention_changes" (by language), "mean_change" and "worst_change"; "within_limits".
    """
    adapter.check_attached()
    texts = {"": validation_texts, **retention_texts}
    windows = {
        lang: _scorable([x for text in own if text.strip() for x in pack_tokens(tokenizer, [text], window)])
        for lang, own in texts.items()
    }
    curve: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    tried = list(dict.fromkeys([0.0, *map(float, scales)]))
    bar = progress(len(tried), "Choosing the scale", "scales", show=processes.is_main())
    with bar, evaluation_mode(adapter.model):
        for scale in tried:
            adapter.scale = scale
            losses = {lang: mean_loss(adapter.model, x, _BATCH_TOKENS) for lang, x in windows.items()}
            base = base or losses
            changes = {lang: loss / base[lang] - 1 for lang, loss in losses.items()}
            row = {"scale": scale, "validation_loss": losses[""], "validation_change": changes.pop("")}
            mean, worst = sum(changes.values()) / len(changes), max(changes.values())
            within = mean <= mean_limit and worst <= worst_limit and losses[""] < math.inf
            row |= {"retention_changes": changes, "mean_change": mean, "worst_change": worst, "within_limits": within}
            curve.append(row)
            bar.update()
    adapter.scale = best_scale(curve)
    if processes.is_main():
        print(_explanation(curve, adapter.scale), flush=True)
    return curve


def best_scale(curve: Sequence[Mapping[str, Any]]) -> float:
    """Returns the scale with the lowest validation loss within the limits, from a curve of `choose_scale`."""
    return min((row for row in curve if row["within_limits"]), key=lambda row: row["validation_loss"])["scale"]


def _explanation(curve: Sequence[Mapping[str, Any]], scale: float) -> str:
    """Says in words what was chosen, and what the largest scale would gain and cost."""
    sentences = {}
    for row in curve:
        worst = max(row["retention_changes"], key=row["retention_changes"].__getitem__)
        sentences[row["scale"]] = (
            f"Scale {row['scale']:g}: validation loss {row['validation_loss']:.3f} ({row['validation_change']:+.1%}), other "
            f"languages {row['mean_change']:+.1%} on average and {row['worst_change']:+.1%} at worst ({worst})."
        )
    sentences[0.0] = (
        "Scale 0, the base: no larger scale lowers the validation loss and keeps the other languages within the limits. "
        "Train at a lower learning rate, or give a number as scale."
    )
    return " ".join(sentences[x] for x in dict.fromkeys([scale, max(sentences)]))


def _scorable(windows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves out windows of one token, in which no token is predicted."""
    scorable = [window for window in windows if len(window) > 1]
    if not scorable:
        raise InvalidInput("The validation text has no token to predict: give more of it, or none.")
    return scorable


def reset_peak_memory() -> None:
    """Starts the measurement of peak memory again, where the system can (CUDA, Linux)."""
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
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 2**20
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def _packed(tokenizer: Any, texts: Sequence[str] | TextStream, settings: TrainingSettings) -> PackedWindows:
    if isinstance(texts, TextStream):
        windows = pack_stream(tokenizer, texts, settings.window, max(1, settings.max_tokens // settings.window))
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
    """Returns how many steps are taken; says so when the text holds fewer tokens than were asked for."""
    per_step = settings.batch_size * settings.gradient_accumulation * processes.count()
    budget = settings.max_tokens // settings.window
    steps = max(1, min(windows * settings.epochs, max(1, budget)) // per_step)
    have, trained = windows * settings.epochs * settings.window, steps * per_step * settings.window
    if have < max(trained, budget * settings.window) and processes.is_main():
        outcome = f"{trained:,} are trained on, in whole steps. More epochs would go over it again."
        if have < trained:
            outcome = f"one step takes {trained:,}, so it is gone over again, unless the batch is smaller."
        passes = "1 pass" if settings.epochs == 1 else f"{settings.epochs} passes"
        asked = f"{settings.max_tokens:,} were asked for"
        print(f"The training text has {have:,} tokens ({passes}), and {asked}: {outcome}", flush=True)
    return steps
