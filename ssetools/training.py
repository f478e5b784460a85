"""One training loop for every method: packed text, warm-up and decay, validation, best weights, exact resume."""

from __future__ import annotations

import csv
import hashlib
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from ssetools.corpora import pack_tokens
from ssetools.loss import chunked_loss, token_losses
from ssetools.models import evaluation_mode, model_source
from ssetools.paths import whole_file
from ssetools.subnetwork import Subnetwork

METHODS = ("lape", "random", "random-uniform")
"""Names of the methods: they differ in the neurons they are given, not in the loop."""

_LOG_COLUMNS = ("step", "tokens", "loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second")


@dataclass(frozen=True)
class TrainingSettings:
    """What a run is: change one of these and it is another run.

    Attributes:
        learning_rate: Peak rate of AdamW; warm-up over `warmup` of the steps, then cosine decay to zero.
        max_tokens: Training stops after this many tokens, or after `epochs`, whichever is first.
        epochs: Passes over the text.
        batch_size: Windows per forward pass.
        gradient_accumulation: Forward passes per optimiser step.
        window: Tokens per window, BOS included.
        warmup: Share of the steps.
        weight_decay: AdamW's; pulls the deltas to zero, that is the weights to their pretrained values.
        clip: Largest norm of the gradient.
        validate_every: Steps between validations; the best weights seen are the ones kept.
        checkpoint_every: Steps between checkpoints.
        seed: Order of the windows.
    """

    learning_rate: float = 5e-4
    max_tokens: int = 30_720
    epochs: int = 1
    batch_size: int = 4
    gradient_accumulation: int = 1
    window: int = 256
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    validate_every: int = 10
    checkpoint_every: int = 10
    seed: int = 0


@dataclass
class TrainingResult:
    """What `finetune` returns.

    Attributes:
        adapter: The trained subnetwork, attached, with its best weights.
        method: Name of the method.
        settings: The settings used.
        history: One dict per step, the columns of log.csv.
        best_step: Step whose weights were kept (the last, when there is no validation text).
        tokens: Tokens trained on.
        seconds: Wall time of this call.
        peak_memory_gib: Peak memory of the process (CPU) or of the device (CUDA) so far.
    """

    adapter: Subnetwork
    method: str
    settings: TrainingSettings
    history: list[dict] = field(repr=False)
    best_step: int
    tokens: int
    seconds: float
    peak_memory_gib: float


def finetune(
    model: nn.Module,
    tokenizer,
    texts: Sequence[str],
    method: str = "lape",
    neurons: Sequence[torch.Tensor] | None = None,
    validation_texts: Sequence[str] = (),
    run_dir: str | Path | None = None,
    facts: Mapping | None = None,
    **settings,
) -> TrainingResult:
    """Trains only the weights of the chosen neurons on a language's text.

    Args:
        model: A causal language model, 8-bit or not; it is frozen.
        tokenizer: Its tokenizer.
        texts: Training documents.
        method: "lape" (the language's neurons), "random" (as many others, matched in depth) or "random-uniform":
            a name for the record, since the neurons decide.
        neurons: Neuron ids for each layer.
        validation_texts: Documents for choosing the best weights; none keeps the last.
        run_dir: Folder for `adapter.safetensors`, `adapter.json` and `log.csv`. A run killed at any step goes on
            from its last checkpoint there, to the same final weights as an uninterrupted one.
        facts: JSON-able facts for adapter.json, such as language and corpus.
        **settings: Fields of `TrainingSettings`.

    Returns:
        The result; the trained adapter is left attached to the model.

    Raises:
        ValueError: For an unknown method, text shorter than one window, or a stopped run with other settings.
        FloatingPointError: When the loss is not finite, with advice.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")
    if neurons is None:
        raise ValueError(f'Method {method!r} needs neurons=, such as neurons["yo"] of a NeuronSets.')
    settings = TrainingSettings(**settings)
    windows = _full_windows(tokenizer, texts, settings.window)
    validation = pack_tokens(tokenizer, validation_texts, settings.window) if validation_texts else []
    steps = _num_steps(len(windows), settings)
    began = time.monotonic()
    adapter = Subnetwork.attach(model, neurons)
    try:
        run = _Run(adapter, windows, validation, steps, settings, run_dir, method)
        with evaluation_mode(model):
            run.train()
    except BaseException:
        adapter.detach()
        raise
    tokens = sum(row["tokens"] for row in run.history[-1:])
    result = TrainingResult(
        adapter, method, settings, run.history, run.best_step, tokens, time.monotonic() - began, peak_memory_gib()
    )
    if run_dir:
        adapter.save(
            run_dir,
            method=method,
            settings=asdict(settings),
            steps=steps,
            best_step=run.best_step,
            tokens=tokens,
            seconds=round(result.seconds, 1),
            peak_memory_gib=round(result.peak_memory_gib, 2),
            **(facts or {}),
        )
        run.finish()
    return result


def peak_memory_gib() -> float:
    """Returns the peak memory so far: of the device on CUDA, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _full_windows(tokenizer, texts: Sequence[str], window: int) -> torch.Tensor:
    packed = pack_tokens(tokenizer, texts, window)
    full = [piece for piece in packed if len(piece) == window]
    if not full:
        raise ValueError(
            f"The training text has {len(packed[0])} tokens, less than one window of {window}: give more text, or a "
            "smaller window."
        )
    return torch.stack(full)


def _rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate at a step counted from 0: linear warm-up, whose first step already moves, then cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _num_steps(windows: int, settings: TrainingSettings) -> int:
    per_step = settings.batch_size * settings.gradient_accumulation
    budget = max(1, settings.max_tokens // settings.window)
    return max(1, min(windows * settings.epochs, budget) // per_step)


class _Run:
    """The state of one run, and its loop."""

    def __init__(self, adapter, windows, validation, steps, settings, run_dir, method):
        self.adapter, self.windows, self.validation, self.steps = adapter, windows, validation, steps
        self.settings, self.folder = settings, Path(run_dir) if run_dir else None
        model = adapter.model
        self.device = model.get_input_embeddings().weight.device
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        torch.manual_seed(settings.seed)
        optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.optimizer = self.accelerator.prepare(optimizer)
        warmup = max(1, round(settings.warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup, steps))
        self.step, self.history, self.best, self.best_step, self.best_loss = 0, [], None, 0, math.inf
        self.identity = {**asdict(settings), **model_source(model), "method": method, "text": _digest(windows)}
        self.identity["neurons"] = _digest(torch.cat(adapter.neurons))
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resume()
            self._write_log()

    def train(self):
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=not sys.stderr.isatty())
        with bar:
            while self.step < self.steps:
                began = time.monotonic()
                row = self._one_step()
                seen = row["tokens"] - (self.history[-1]["tokens"] if self.history else 0)
                row["tokens_per_second"] = round(seen / (time.monotonic() - began), 1)
                if self.validation and (self.step % self.settings.validate_every == 0 or self.step == self.steps):
                    row["validation_loss"] = self._validate()
                    if bar.disable:
                        print(_line(row, self.steps), flush=True)
                self.history.append(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_second=row["tokens_per_second"])
                bar.update()
                self._append_log(row)
                if self.folder and (self.step % self.settings.checkpoint_every == 0):
                    self._save()
        if self.best is not None:
            self._load_deltas(self.best)
        else:
            self.best_step = self.step

    def _one_step(self) -> dict:
        settings = self.settings
        per_step = settings.batch_size * settings.gradient_accumulation
        chosen = [self._window_at(i) for i in range(self.step * per_step, (self.step + 1) * per_step)]
        loss = 0.0
        for batch in torch.stack(chosen).split(settings.batch_size):
            part = chunked_loss(self.adapter.model, batch.to(self.device)) / settings.gradient_accumulation
            self.accelerator.backward(part)
            loss += part.item()
        if not math.isfinite(loss):
            if self.folder:
                self._checkpoint.unlink(missing_ok=True)
            raise FloatingPointError(
                f"The loss is {loss} at step {self.step + 1}. Lower the learning rate (now {settings.learning_rate:g}), "
                "or load the model with dtype='float32' (float16 overflows in some models)."
            )
        norm = self.accelerator.clip_grad_norm_(self.adapter.parameters(), settings.clip)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = self.step * per_step * settings.window
        return {"step": self.step, "tokens": tokens, "loss": loss, "learning_rate": rate, "grad_norm": norm.item()}

    def _window_at(self, position: int) -> torch.Tensor:
        # A pure function of seed and position, so that a resumed run sees the windows it would have seen.
        epoch, index = divmod(position, len(self.windows))
        order = torch.randperm(
            len(self.windows), generator=torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        )
        return self.windows[order[index]]

    def _validate(self) -> float:
        total = count = 0
        for window in self.validation:
            losses = token_losses(self.adapter.model, window[None].to(self.device))
            total, count = total + losses.sum().item(), count + losses.numel()
        if total / count < self.best_loss:
            self.best_loss, self.best_step = total / count, self.step
            self.best = {k: v.detach().cpu().clone() for k, v in self.adapter.state_dict().items()}
        return total / count

    def _load_deltas(self, state):
        self.adapter.load_state_dict(state)

    # --- files ---

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save(self):
        state = {
            "identity": self.identity,
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "history": self.history,
            "best": (self.best, self.best_step, self.best_loss),
            "rng": torch.get_rng_state(),
        }
        with whole_file(self._checkpoint) as scratch:
            torch.save(state, scratch)

    def _resume(self):
        if not self._checkpoint.is_file():
            return
        state = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        if state["identity"] != self.identity:
            before, now = state["identity"], self.identity
            differ = [f"{k} {before.get(k)} (now {now[k]})" for k in now if before.get(k) != now[k]]
            raise ValueError(
                f"{self.folder} holds a stopped run with other settings: {', '.join(differ)}. Delete the folder to "
                "start over, or ask for those settings to go on with it."
            )
        self._load_deltas(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.history = state["step"], state["history"]
        self.best, self.best_step, self.best_loss = state["best"]
        torch.set_rng_state(state["rng"])
        print(f"Going on with the run in {self.folder} at step {self.step} of {self.steps}.", flush=True)

    def _write_log(self):
        with whole_file(self.folder / "log.csv") as scratch, open(scratch, "w", newline="") as file:
            writer = csv.DictWriter(file, _LOG_COLUMNS)
            writer.writeheader()
            writer.writerows(self.history)

    def _append_log(self, row):
        if self.folder:
            with open(self.folder / "log.csv", "a", newline="") as file:
                csv.DictWriter(file, _LOG_COLUMNS).writerow(row)

    def finish(self):
        self._checkpoint.unlink(missing_ok=True)


def _line(row: dict, steps: int) -> str:
    return (
        f"step {row['step']:>4} of {steps}   loss {row['loss']:.3f}   validation {row['validation_loss']:.3f}   "
        f"{row['tokens_per_second']:.0f} tokens/s"
    )


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
