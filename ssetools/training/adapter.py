"""What all trained adapters have in common: scale, switching off, merging, saving and loading."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import read_json, write_json
from ssetools.models import (
    ATTACHED,
    check_base_model,
    has_8bit_layers,
    model_mismatch,
    model_source,
    quantization_of,
)


class Adapter(nn.Module):
    """Trainable numbers attached to a frozen model, which can be scaled, switched off and taken off again.

    `parameters()` are what the optimiser moves, in float32. A subclass provides `_set_factor`, `_take_off`, `_merge`,
    `_write` and `_read`.

    Attributes:
        attached: Whether the model still carries this adapter.
        active: Whether it is switched on.
    """

    format = ""

    def __init__(self, model: nn.Module):
        super().__init__()
        if model in ATTACHED:
            raise InvalidInput("This model already has an adapter attached: detach() it first.")
        check_base_model(model, "Training")
        # A tuple, so that the base does not become a submodule whose parameters would be ours.
        self._base = (model,)
        model.requires_grad_(False)
        self.attached = False
        self.active = True
        self._scale = 1.0

    def _register(self) -> None:
        ATTACHED[self.model] = self
        self.attached = True

    @staticmethod
    def attached_to(model: nn.Module) -> Adapter:
        """Returns the adapter attached to `model`.

        Raises:
            ValueError: If there is none.
        """
        if model not in ATTACHED:
            raise InvalidInput("No adapter is attached to this model: attach, load or finetune first.")
        return ATTACHED[model]

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self._base[0]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    @property
    def scale(self) -> float:
        """The factor of the trained change: 1 as trained, 0 the base exactly.

        Set it at any time after training. Between the two, each weight is interpolated between its pretrained and its
        trained value (Wortsman et al., arXiv 2109.01903). Saved, merged and exported adapters carry it.

        Raises:
            ValueError: When set to a negative number, or to one that is not finite.
        """
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = check_scale(value)
        if self.attached and self.active:
            self._set_factor(self._scale)

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[nn.Module]:
        """Gives the base model, exactly, for the length of a `with` block.

        Raises:
            ValueError: If the adapter was taken off the model.
        """
        self.check_attached()
        before, self.active = self.active, False
        self._set_factor(0.0)
        try:
            yield self.model
        finally:
            self.active = before
            if self.attached and before:
                self._set_factor(self.scale)

    def detach(self) -> nn.Module:
        """Takes the adapter off: the model is the base again, exactly. Returns the model."""
        if self.attached:
            self._take_off()
            ATTACHED.pop(self.model, None)
            self.attached = False
        return self.model

    def merge(self) -> nn.Module:
        """Adds the trained change, times `scale`, to the weights of a 16- or 32-bit base and detaches.

        Returns:
            The model.

        Raises:
            ValueError: For an 8-bit base, or when the adapter is off the model, as after a merge.
        """
        self.check_attached()
        if has_8bit_layers(self.model):
            raise InvalidInput(
                f"Merged into int8 weights, {self._lost_in_int8()}: int8 steps are coarse beside a trained change. Load the "
                "base with load_in_8bit=False, load_adapter(folder, model), and merge there (`ssetools merge`)."
            )
        if kind := quantization_of(self.model):
            raise InvalidInput(
                f"A trained change cannot be merged into {kind} weights. Load the 16-bit base with load_in_8bit=False, "
                "load_adapter(folder, model), and merge there (`ssetools merge`)."
            )
        self._set_factor(self.scale)
        self._merge()
        return self.detach()

    def check_attached(self) -> None:
        """Raises a ValueError if the adapter was taken off its model."""
        if not self.attached:
            raise InvalidInput("This adapter was taken off its model: load it again, or train it again.")

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Writes the trained numbers, unscaled, and `adapter.json` with the scale into `folder`.

        Args:
            folder: Made if absent.
            **facts: JSON-able facts to keep in adapter.json, such as language and method.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"format": self.format, "parameters": self.num_parameters, "scale": self.scale, **self._write(folder)}
        write_json(folder / "adapter.json", {**about, "base": model_source(self.model), **facts})
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Adapter:
        """Attaches a saved adapter to `model`, at the scale at which it was saved.

        Raises:
            FileNotFoundError: If `folder` holds no adapter.
            ValueError: If the adapter is of another format, or was trained for another model or revision. 8-bit or not
                is free to differ where the method allows it.
        """
        about = adapter_facts(folder)
        if about["format"] != cls.format:
            raise InvalidInput(f"{folder} holds a {about['format']!r} adapter, not {cls.format!r}: use load_adapter.")
        if differs := model_mismatch(about["base"], model_source(model)):
            raise InvalidInput(f"The adapter in {folder} was trained for {differs}.")
        adapter = cls._read(Path(folder), model, about)
        adapter.scale = about.get("scale", 1.0)  # saved before adapters had a scale
        return adapter

    def to_peft(self, folder: str | Path, uniform_rank: bool = False) -> Path:
        """Writes a PEFT checkpoint of the same function, scale included, which PEFT, vLLM and the hub load.

        Args:
            folder: Folder to write.
            uniform_rank: Whether to give all modules one rank (8, 16, 32, 64, 128, 256, 320 or 512), as vLLM needs,
                padded with zeros. LoRA has one rank already.

        Raises:
            ValueError: If the adapter cannot be written so, or a layer needs a higher rank than the largest uniform one.
        """
        raise InvalidInput(f"{type(self).__name__} has no PEFT form: merge() it into the model (`--format merged`).")

    def to_gguf_lora(self, path: str | Path) -> Path:
        """Writes a GGUF adapter of the same function, scale included, which llama.cpp loads beside the base in GGUF.

        Raises:
            ValueError: If the adapter cannot be written so, or llama.cpp does not know the family.
        """
        raise InvalidInput(f"{type(self).__name__} has no GGUF form: merge() it into the model (`--format merged`).")

    # --- what the loop calls; most methods have nothing to do here ---

    def dropout(self, active: bool) -> None:
        """Turns the adapter's own dropout on for a training step, or off."""

    def collect_gradients(self) -> None:
        """Called after each backward pass: brings gradients to `parameters()` where they arise elsewhere."""

    def publish(self) -> None:
        """Called after `parameters()` changed: brings them into the model where it holds a copy."""

    def base_value(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns what a weight of the model was before training: itself, unless the method trains it in place."""
        return weight

    # --- what a method provides ---

    def _set_factor(self, factor: float) -> None:
        """Makes the model the base plus `factor` times the trained change; at 0 exactly the base."""
        raise NotImplementedError

    def _take_off(self) -> None:
        raise NotImplementedError

    def _merge(self) -> None:
        raise NotImplementedError

    def _lost_in_int8(self) -> str:
        return "what was trained would be rounded"

    def _write(self, folder: Path) -> dict:
        raise NotImplementedError

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict) -> Adapter:
        raise NotImplementedError


def adapter_facts(folder: str | Path) -> dict:
    """Reads `adapter.json`.

    Raises:
        FileNotFoundError: If `folder` holds no adapter.
    """
    path = Path(folder) / "adapter.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no adapter in {folder}: {path} does not exist.")
    return read_json(path)


def results_at_scale(folder: str | Path, name: str, scale: float) -> tuple[Path, dict]:
    """Returns where a run keeps results at a scale, and its facts with that scale.

    The file is `name`, such as "metrics.json", for the scale that the run was saved with, else "metrics-scale0.4.json".
    """
    path, about = Path(folder) / name, adapter_facts(folder)
    if scale != about.get("scale", 1.0):
        path, about["scale"] = path.with_name(f"{path.stem}-scale{scale:g}{path.suffix}"), scale
    return path, about


def check_scale(value: float) -> float:
    """Returns a scale as a float.

    Raises:
        ValueError: If it is negative, not finite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInput(
            f'scale is a number from 0 (the base) on, 1 as trained, or "auto" in finetune; got {value!r}.'
        )
    return float(value)


def copy_into(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a value into a parameter in place, outside of autograd."""
    with torch.no_grad():
        parameter.copy_(value)
