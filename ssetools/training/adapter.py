"""What the training loop and the evaluation ask of anything that can be trained, whatever the method."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import read_json, write_json
from ssetools.models import model_source, other_model

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Adapter] = weakref.WeakKeyDictionary()


class Adapter(nn.Module):
    """Trainable numbers attached to a frozen model, which can be switched off and taken off again.

    `parameters()` are what the optimiser moves, in float32. A subclass provides `_attach`, `_switch`, `_write`,
    `_read` and `_take_off`.

    Attributes:
        attached: Whether the model still carries this adapter.
        active: Whether it is switched on.
    """

    format = ""

    def __init__(self, model: nn.Module):
        super().__init__()
        if model in _ATTACHED:
            raise InvalidInput("This model already has an adapter attached: detach() it first.")
        # A tuple, so that the base does not become a submodule whose parameters would be ours.
        self._base = (model,)
        model.requires_grad_(False)
        self.attached = False
        self.active = True

    def _register(self) -> None:
        _ATTACHED[self.model] = self
        self.attached = True

    @staticmethod
    def attached_to(model: nn.Module) -> Adapter:
        """Returns the adapter attached to `model`.

        Raises:
            ValueError: If there is none.
        """
        if model not in _ATTACHED:
            raise InvalidInput("No adapter is attached to this model: attach, load or finetune first.")
        return _ATTACHED[model]

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self._base[0]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[nn.Module]:
        """Gives the base model, exactly, for the length of a `with` block.

        Raises:
            ValueError: If the adapter was taken off the model.
        """
        self._check_attached()
        if not self.active:  # within another such block
            yield self.model
            return
        self._switch(False)
        self.active = False
        try:
            yield self.model
        finally:
            self._switch(True)
            self.active = True

    def detach(self) -> nn.Module:
        """Takes the adapter off: the model is the base again, exactly. Returns the model."""
        if self.attached:
            self._take_off()
            _ATTACHED.pop(self.model, None)
            self.attached = False
        return self.model

    def _check_attached(self) -> None:
        if not self.attached:
            raise InvalidInput("This adapter was taken off its model: load it again, or train it anew.")

    def save(self, folder: str | Path, **facts) -> Path:
        """Writes the trained numbers and `adapter.json` into `folder`.

        Args:
            folder: Made if absent.
            **facts: JSON-able facts to keep in adapter.json, such as language and method.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"format": self.format, "parameters": self.num_parameters, **self._write(folder)}
        write_json(folder / "adapter.json", {**about, "base": model_source(self.model), **facts})
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Adapter:
        """Attaches a saved adapter to `model`.

        Raises:
            FileNotFoundError: If `folder` holds no adapter.
            ValueError: If the adapter is of another kind, or was trained for another model or revision. 8-bit or not
                is free to differ where the method allows it.
        """
        about = adapter_facts(folder)
        if about["format"] != cls.format:
            raise InvalidInput(f"{folder} holds a {about['format']!r} adapter, not {cls.format!r}: use load_adapter.")
        if differs := other_model(about["base"], model):
            raise InvalidInput(f"The adapter in {folder} was trained for {differs}.")
        return cls._read(Path(folder), model, about)

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

    def _switch(self, on: bool) -> None:
        raise NotImplementedError

    def _take_off(self) -> None:
        raise NotImplementedError

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


def copy_into(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a value into a parameter in place, outside of autograd."""
    with torch.no_grad():
        parameter.copy_(value)
