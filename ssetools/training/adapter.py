"""What all trained adapters have in common: scale, switching off, merging, saving and loading."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import read_json, save_tensors, write_json
from ssetools.lora_files import LoraPairs, write_gguf_lora, write_peft
from ssetools.models import check_base_model, decoder_layers, model_mismatch, model_source, quantization_of


class Adapter(nn.Module):
    """Trainable numbers attached to a frozen model, which can be scaled, switched off and taken off again.

    `parameters()` are what the optimiser moves, in float32. A subclass provides what stands at the end of this class.

    While it is attached, `model.save_pretrained` saves the adapter, with a warning, and transformers' Trainer (or a
    trainer built on it) trains `parameters()`, 8-bit base or not, and saves and resumes them.

    Attributes:
        attached: Whether the model still carries this adapter.
        active: Whether it is switched on.
    """

    format = ""
    _beside_the_weights = True  # so that the model's own weights are the base's

    def __init__(self, model: nn.Module):
        super().__init__()
        if getattr(model, "ssetools_adapter", None) is not None:
            raise InvalidInput("This model already has an adapter attached: detach() it first.")
        check_base_model(model, "Training")
        # A tuple, so that the base does not become a submodule whose parameters would be ours.
        self._base = (model,)
        model.requires_grad_(False)
        self.attached = False
        self.active = True
        self._scale = 1.0

    def _register(self) -> None:
        model: Any = self.model
        # Not as a submodule, unless its parameters are not in the model already: see Subnetwork.
        object.__setattr__(model, "ssetools_adapter", self)
        if self._beside_the_weights:
            model.save_pretrained = self._save_in_place_of_model
            model._hf_peft_config_loaded = True  # Trainer trains a quantised model only if it sees an adapter
        self.attached = True

    @staticmethod
    def attached_to(model: nn.Module) -> Adapter:
        """Returns the adapter attached to `model`.

        Raises:
            ValueError: If there is none.
        """
        adapter = getattr(model, "ssetools_adapter", None)
        if adapter is None:
            raise InvalidInput("No adapter is attached to this model: attach, load or finetune first.")
        return adapter

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
            model: Any = self.model
            del model.ssetools_adapter
            if self._beside_the_weights:
                del model.save_pretrained, model._hf_peft_config_loaded
            self.attached = False
        return self.model

    def merge(self) -> nn.Module:
        """Adds the trained change, times `scale`, to the weights of a 16- or 32-bit base and detaches.

        Returns:
            The model.

        Raises:
            ValueError: For a quantised base, or when the adapter is off the model, as after a merge.
        """
        self.check_attached()
        if kind := quantization_of(self.model):
            raise InvalidInput(
                f"Merged into {kind} weights, {self._lost_in(kind)}: {kind} steps are coarse beside a trained change. Load "
                "the 16-bit base with load_in_8bit=False, load_adapter(folder, model), and merge there (`ssetools merge`)."
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

    def _save_in_place_of_model(self, save_directory: str | Path, is_main_process: bool = True, **_: Any) -> None:
        if not is_main_process:
            return
        folder = self.save(save_directory)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        save_tensors(folder / "model.safetensors", trained, {"format": "pt"})  # what Trainer resumes from
        warnings.warn(
            f"An adapter is attached to this model: its trained numbers alone were saved to {folder}, where load_adapter "
            "finds them. For a whole model, adapter.merge() first, then model.save_pretrained().",
            stacklevel=2,
        )

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
        """Writes the same function, scale included, as a PEFT checkpoint, which PEFT, vLLM and the hub load.

        Args:
            folder: Folder to write.
            uniform_rank: Whether to pad all modules with zeros to one rank (8, 16, 32, 64, 128, 256, 320 or 512), as
                vLLM needs; otherwise every module of a subnetwork has the rank of its number of neurons.

        Raises:
            ValueError: If the method has no such form, or a layer needs a higher rank than the largest uniform one.
        """
        pairs = self._lora_pairs()
        transposed = any(_is_conv1d(self.model.get_submodule(path)) for path in pairs)
        return write_peft(pairs, folder, model_source(self.model)["model"], uniform_rank, transposed)

    def to_gguf_lora(self, path: str | Path) -> Path:
        """Writes the same function, scale included, as a GGUF adapter, which llama.cpp loads beside the base in GGUF.

        Raises:
            ValueError: If the method has no such form, or llama.cpp does not know the family.
        """
        config: Any = self.model.config
        layers = len(decoder_layers(self.model))
        return write_gguf_lora(self._lora_pairs(), path, config.get_text_config().model_type, layers)

    # --- what the training loop calls; most methods have nothing to do here ---

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

    def _lost_in(self, kind: str) -> str:
        return "what was trained would be rounded"

    def _lora_pairs(self) -> LoraPairs:
        raise InvalidInput(f"{type(self).__name__} cannot be written as LoRA: merge() it (`--format merged`).")

    def _write(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict[str, Any]) -> Adapter:
        raise NotImplementedError


def adapter_facts(folder: str | Path) -> dict[str, Any]:
    """Reads `adapter.json`.

    Raises:
        FileNotFoundError: If `folder` holds no adapter.
    """
    path = Path(folder) / "adapter.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no adapter in {folder}: {path} does not exist.")
    return read_json(path)


def check_scale(value: Any) -> float:
    """Returns a scale as a float.

    Raises:
        ValueError: If it is negative, not finite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInput(
            f'scale is a number from 0 (the base) on, 1 as trained, or "auto" in finetune; got {value!r}.'
        )
    return float(value)


def _is_conv1d(module: Any) -> bool:
    layer = getattr(module, "base_layer", module)  # PEFT wraps what it adapts
    return "Conv1D" in (type(layer).__name__, getattr(getattr(layer, "source_cls", None), "__name__", ""))  # or 8-bit


def copy_into(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a value into a parameter in place, outside of autograd."""
    with torch.no_grad():
        parameter.copy_(value)
