"""The training loop, the same for every method: warm-up and decay, validation, best weights, exact resume."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ssetools import processes
from ssetools.errors import InvalidInput, TrainingDiverged
from ssetools.files import atomic_write, differences, digest, reading, writing
from ssetools.loss import check_head, chunked_loss, token_losses
from ssetools.models import decoder_layers, device_of, evaluation_mode, is_sharded, model_source
from ssetools.progress import progress
from ssetools.text.windows import PackedWindows
from ssetools.training.adapter import Adapter
from ssetools.training.methods import METHODS
from ssetools.training.subnetwork import Subnetwork

_FLOAT16_SCALE = 1024
_CHECKPOINT = "checkpoint.pt"
_LOG_COLUMNS = ("step", "tokens", "loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second")


@dataclass(frozen=True)
class TrainingSettings:
    """What a run is: change one of these and it is another run.

    Attributes:
        learning_rate: Peak rate of AdamW, None for the method's own; linear warm-up, then cosine decay to zero.
        max_tokens: Training stops after this many tokens or after `epochs`, in whole steps and at least one.
        epochs: Passes over the text.
        batch_size: Windows per forward pass.
        gradient_accumulation: Forward passes per optimiser step.
        window: Tokens per window, BOS included.
        warmup: Share of the steps in which the rate rises.
        weight_decay: AdamW's; pulls deltas and LoRA to zero, and with them the weights to their pretrained values, but
            whole weights ("ffn", "full") and IA3's factors, which start at 1, to zero as well.
        clip: Largest norm of the gradient.
        validate_every: Steps between validations; the best weights seen are the ones kept.
        checkpoint_every: Steps between checkpoints.
        seed: Order of the windows.
        optimizer: "adamw", or "adamw8bit" (bitsandbytes: a quarter of the state, rounded).
        checkpoint_activations: Keep only what enters each layer and compute the rest again in the backward pass: half
            as much work again, for a fraction of the memory that grows with batch and window.
    """

    learning_rate: float | None = None
    max_tokens: int = 30_720
    epochs: int = 1
    batch_size: int = 2
    gradient_accumulation: int = 1
    window: int = 256
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    validate_every: int = 10
    checkpoint_every: int = 10
    seed: int = 0
    optimizer: str = "adamw"
    checkpoint_activations: bool = False

    def __post_init__(self):
        counts = ("max_tokens", "epochs", "batch_size", "gradient_accumulation", "validate_every", "checkpoint_every")
        for name in (*counts, "window"):
            minimum = 2 if name == "window" else 1
            if getattr(self, name) < minimum:
                raise InvalidInput(f"{name} is a whole number from {minimum} on; got {getattr(self, name)!r}.")
        if self.optimizer not in ("adamw", "adamw8bit"):
            raise InvalidInput(f"Unknown optimizer {self.optimizer!r}: use one of adamw, adamw8bit.")

    def for_method(self, method: str) -> TrainingSettings:
        """Returns these settings with the learning rate that `method` has by default, unless one is given."""
        return self if self.learning_rate is not None else replace(self, learning_rate=METHODS[method].learning_rate)


class Run:
    """The state of one run, and its loop: log and checkpoints, if there is a folder, and the best weights."""

    def __init__(
        self,
        adapter: Adapter,
        windows: PackedWindows,
        validation: list[torch.Tensor],
        steps: int,
        settings: TrainingSettings,
        run_dir: str | Path | None,
        method: str,
    ):
        self.adapter, self.windows, self.validation, self.steps = adapter, windows, validation, steps
        self.settings, self.folder = settings, Path(run_dir) if run_dir else None
        model = adapter.model
        self.device = device_of(model)
        with evaluation_mode(model):  # while no dropout is active
            check_head(model)
        torch.manual_seed(settings.seed)
        rate = cast(float, settings.learning_rate)
        self.optimizer = make_optimizer(settings.optimizer, adapter.parameters(), rate, settings.weight_decay)
        # In a mean over a thousand tokens, gradients fall below what float16 can hold.
        self.gradient_scale = _FLOAT16_SCALE if model_source(model)["dtype"] == "float16" else 1
        warmup = max(1, round(settings.warmup * steps))

        def share_of_peak(step: int) -> float:  # from 0; the first step already moves
            cosine = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
            return (step + 1) / warmup if step < warmup else 0.5 * (1 + cosine)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share_of_peak)
        self.step, self.best, self.best_step, self.best_loss = 0, None, 0, math.inf
        self.history: list[dict[str, Any]] = []
        self._order = -1, torch.empty(0)
        self.identity = {**asdict(settings), **model_source(model), "method": method, "text": windows.digest()}
        self.identity["parameters"] = adapter.num_parameters
        self.identity["validation"] = digest(torch.cat(validation)) if validation else None
        if isinstance(adapter, Subnetwork):
            self.identity["neurons"] = digest(torch.cat(adapter.neurons))
        if processes.count() > 1:
            self.identity["processes"] = processes.count()
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resume(self.folder / _CHECKPOINT)
        if not processes.is_main():
            self.folder = None  # from here on, files are one process's work
        if self.folder:
            with atomic_write(self.folder / "log.csv") as scratch:
                _write_log(scratch, "w", [dict(zip(_LOG_COLUMNS, _LOG_COLUMNS, strict=True)), *self.history])

    def train(self) -> None:
        """Takes the steps that are left, and leaves the adapter with its best weights."""
        settings = self.settings
        bar = progress(self.steps, "Training", "steps", self.step, processes.is_main())
        with bar, checkpointed_activations(self.adapter.model, settings.checkpoint_activations):
            while self.step < self.steps:
                began = time.monotonic()
                row = self._one_step()
                seen = row["tokens"] - (self.history[-1]["tokens"] if self.history else 0)
                row["tokens_per_second"] = round(seen / (time.monotonic() - began), 1)
                if self.validation and (self.step % settings.validate_every == 0 or self.step == self.steps):
                    row["validation_loss"] = self._validate()
                    if processes.is_main() and not sys.stderr.isatty():
                        print(
                            f"step {self.step:>4} of {self.steps}   loss {row['loss']:.3f}   "
                            f"validation {row['validation_loss']:.3f}   {row['tokens_per_second']:.0f} tokens/s",
                            flush=True,
                        )
                self.history.append(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_second=row["tokens_per_second"], refresh=False)
                bar.update()
                if self.folder:
                    _write_log(self.folder / "log.csv", "a", [row])
                    if self.step % settings.checkpoint_every == 0:
                        self._save(self.folder / _CHECKPOINT)
        if self.best is None:
            self.best_step = self.step
        else:
            self.adapter.load_state_dict(self.best)
        self.adapter.dropout(False)

    def _one_step(self) -> dict[str, Any]:
        settings, parameters = self.settings, list(self.adapter.parameters())
        mine = settings.batch_size * settings.gradient_accumulation
        per_step = mine * processes.count()
        first = self.step * per_step + processes.state().process_index * mine
        windows = torch.stack([self._window_at(i) for i in range(first, first + mine)])
        loss = 0.0
        self.adapter.dropout(True)
        for batch in windows.split(settings.batch_size):
            part = chunked_loss(self.adapter.model, batch.to(self.device)) / settings.gradient_accumulation
            (part * self.gradient_scale).backward()
            self.adapter.collect_gradients()
            loss += part.item()
        for parameter in parameters if self.gradient_scale != 1 else ():
            if parameter.grad is not None:
                parameter.grad /= self.gradient_scale
        processes.average_gradients(parameters)
        loss = processes.total(_exact(loss, self.device)).item() / processes.count()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip).item()
        if not math.isfinite(loss + norm):
            self.finish()
            raise TrainingDiverged(
                f"The loss is {loss} at step {self.step + 1}, its gradient's norm {norm}. Lower the learning rate (now "
                f"{settings.learning_rate:g}), or load the model with dtype='float32' (float16 overflows in some models)."
            )
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.adapter.publish()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = self.step * per_step * settings.window
        return {"step": self.step, "tokens": tokens, "loss": loss, "learning_rate": rate, "grad_norm": norm}

    def _window_at(self, position: int) -> torch.Tensor:
        # A pure function of seed and position, so that a resumed run sees the windows it would have seen.
        epoch, index = divmod(position, len(self.windows))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self.windows), generator=generator)
        return self.windows[int(self._order[1][index])]

    def _validate(self) -> float:
        self.adapter.dropout(False)
        loss = mean_loss(self.adapter.model, self.validation, self.settings.window)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = {k: v.detach().cpu().clone() for k, v in self.adapter.state_dict().items()}
        return loss

    def _save(self, path: Path) -> None:
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
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        with atomic_write(path) as scratch:
            torch.save(state, scratch)

    def _resume(self, path: Path) -> None:
        if not path.is_file():
            return
        with reading(path, "a checkpoint of this run"):
            state = torch.load(path, weights_only=True, map_location="cpu")
            differ = differences(state["identity"], dict.fromkeys(state["identity"]) | self.identity)
        if differ:
            raise InvalidInput(
                f"{path.parent} holds an interrupted run with other settings: {', '.join(differ)}. Delete the folder to "
                "start over, or ask for those settings to resume it."
            )
        with reading(path, "a checkpoint of this run"):
            self.adapter.load_state_dict(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.history = state["step"], state["history"]
            self.best, self.best_step, self.best_loss = state["best"]
            if not len(self.history) == self.step <= self.steps:
                raise InvalidInput(f"it is at step {self.step!r} of {self.steps}, with {len(self.history)} in its log")
            torch.set_rng_state(state["rng"])
            if "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        print(f"Resuming the run in {path.parent} at step {self.step} of {self.steps}.", flush=True)

    def optimizer_bytes(self) -> int:
        """Returns the size of the optimiser's state."""
        tensors = [t for state in self.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())  # tables are shared

    def finish(self) -> None:
        """Removes the checkpoint."""
        if self.folder:
            (self.folder / _CHECKPOINT).unlink(missing_ok=True)


def _write_log(path: Path, mode: str, rows: Sequence[dict[str, Any]]) -> None:
    with writing(path), open(path, mode, newline="") as file:
        csv.DictWriter(file, [*_LOG_COLUMNS]).writerows(rows)


def mean_loss(model: nn.Module, windows: Sequence[torch.Tensor], batch_tokens: int) -> float:
    """Returns the mean loss in nats over all tokens but the first of each window, which the processes share out.

    Args:
        model: A causal language model, in `evaluation_mode`.
        windows: LongTensors [tokens], each of at least two tokens.
        batch_tokens: Tokens of a forward pass at most, with the padding after shorter windows, which changes no loss.
    """
    windows, batches = sorted(windows, key=len, reverse=True), []
    while windows:
        fitting = max(1, batch_tokens // len(windows[0]))
        batches.append(windows[:fitting])
        windows = windows[fitting:]
    device = device_of(model)
    sums = _exact([0.0, 0.0], device)  # loss, tokens
    for batch in processes.in_step(batches[processes.state().process_index :: processes.count()], is_sharded(model)):
        ids = pad_sequence(batches[0] if batch is None else batch, batch_first=True)
        losses = token_losses(model, ids.to(device))
        if batch is not None:  # else only to take part in the gathering that the others' passes need
            scored = torch.arange(1, ids.shape[1]) < torch.tensor([[len(window)] for window in batch])
            sums += _exact([losses[scored.to(device)].sum().item(), scored.sum().item()], device)
    total, count = processes.total(sums).tolist()
    return total / count


def _exact(numbers: float | list[float], device: torch.device) -> torch.Tensor:
    """Float64 numbers where processes exchange them; alone on the CPU, since not every device has float64."""
    return torch.tensor(numbers, dtype=torch.float64, device=device if processes.count() > 1 else "cpu")


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Makes "adamw" (8 bytes of state for each number) or "adamw8bit" (bitsandbytes: 2 bytes, in large tensors)."""
    parameters = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    device = parameters[0].device.type
    if device not in ("cpu", "cuda", "xpu"):
        raise InvalidInput(f"bitsandbytes has no 8-bit AdamW on {device}: use optimizer='adamw'.")
    import bitsandbytes

    return cast(Any, bitsandbytes.optim).AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)


@contextlib.contextmanager
def checkpointed_activations(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Keeps only what enters each layer during a `with` block, if `active`; the backward pass computes the rest again.

    8-bit layers keep their inputs where autograd cannot drop them, so at first a layer runs without a graph (PyTorch's
    reentrant kind).
    """
    with contextlib.ExitStack() as patches:
        for layer in decoder_layers(model) if active else ():
            patches.enter_context(mock.patch.object(layer, "forward", _recomputed(layer.forward)))
        yield


def _recomputed(forward: Callable) -> Callable:
    def run(hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(hidden, *args, **options)
        if not hidden.requires_grad:  # else the layer's output would not, whatever is trained inside
            hidden = hidden.detach().requires_grad_()
        return checkpoint(lambda x: forward(x, *args, **options), hidden, use_reentrant=True)

    return run
