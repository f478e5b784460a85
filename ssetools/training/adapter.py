"""What all trained adapters have in common: scale, switching off, merging, saving, loading and exporting as LoRA."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput, MissingPackage
from ssetools.files import atomic_write, read_json, reading, save_tensors, write_json
from ssetools.models import check_base_model, decoder_layers, model_mismatch, model_source, quantization_of

LoraPairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A [rank, inputs] and B [outputs, rank] by the path of the module, to whose weight `B @ A` is added."""

UNIFORM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that servers such as vLLM compile for; they read one rank and one alpha for all modules of an adapter."""

_GGUF_FAMILIES = {"mistral": "llama", "gpt_neox": "gptneox", "cohere": "command-r", "gemma3_text": "gemma3"}
"""Names that llama.cpp gives to families, where they are not transformers' own."""


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
    _is_submodule = False  # of the model: only if its parameters are not in the model already

    def __init__(self, model: nn.Module):
        super().__init__()
        _check_free(model)
        # A tuple, so that the base does not become a submodule whose parameters would be ours.
        self._base = (model,)
        model.requires_grad_(False)
        self.attached = False
        self.active = True
        self._scale = 1.0

    def _register(self) -> None:
        model: Any = self.model
        (setattr if self._is_submodule else object.__setattr__)(model, "ssetools_adapter", self)
        if self._beside_the_weights:
            model.save_pretrained = self._save_in_place_of_model
            model._hf_peft_config_loaded = True  # Trainer trains a quantised model only if it sees an adapter
        self.attached = True

    @staticmethod
    def attached_to(model: nn.Module) -> Adapter:
        """Returns the adapter attached to `model`; a ValueError if there is none."""
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

        Set it at any time after training; a ValueError for a negative number, or one that is not finite. Between 0 and
        1, each weight is interpolated between its pretrained and its trained value (Wortsman et al., arXiv 2109.01903).
        Saved, merged and exported adapters carry it.
        """
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = check_scale(value)
        if self.attached and self.active:
            self._set_factor(self._scale)

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[nn.Module]:
        """Gives the base model, exactly, for a `with` block; a ValueError if the adapter was taken off the model."""
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
        """Adds the trained change, times `scale`, to the weights of a 16- or 32-bit base and detaches. Returns the model.

        A ValueError for a quantised base, or when the adapter is off the model, as after a merge.
        """
        self.check_attached()
        if kind := quantization_of(self.model):
            raise InvalidInput(
                f"Merged into {kind} weights, what was trained would be rounded: {kind} steps are coarse beside it. Load the "
                "16-bit base with load_in_8bit=False, load_adapter(folder, model), and merge there (`ssetools merge`)."
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
        """Attaches a saved adapter to `model`, 8-bit or not, at the scale at which it was saved.

        A FileNotFoundError if there is none; a ValueError if it is of another format, or was trained for another model.
        """
        about = adapter_facts(folder)
        if about["format"] != cls.format:
            raise InvalidInput(f"{folder} holds a {about['format']!r} adapter, not {cls.format!r}: use load_adapter.")
        _check_free(model)
        try:
            with reading(folder, "an adapter"):
                if differs := model_mismatch(about["base"], model_source(model)):
                    raise InvalidInput(f"The adapter in {folder} was trained for {differs}.")
                adapter = cls._read(Path(folder), model, about)
                adapter.scale = about.get("scale", 1.0)  # saved before adapters had a scale
                if not all(bool(p.isfinite().all()) for p in adapter.parameters()):
                    raise InvalidInput("it holds infinite numbers or NaN")
            return adapter
        except BaseException:  # Ctrl-C too: no half-read adapter stays attached
            if (half_read := getattr(model, "ssetools_adapter", None)) is not None:
                half_read.detach()
            raise

    def to_peft(self, folder: str | Path, uniform_rank: bool = False) -> Path:
        """Writes the same function, scale included, as a PEFT checkpoint, which PEFT, vLLM and the hub load.

        Args:
            folder: Folder to write.
            uniform_rank: Whether to pad all modules with zeros to one of `UNIFORM_RANKS`, as vLLM needs; otherwise every
                module of a subnetwork has the rank of its number of neurons. A ValueError if one needs a higher rank.
        """
        from peft import LoraConfig

        pairs = dict(self._lora_pairs())
        ranks = {path: len(a) for path, (a, _) in pairs.items()}
        rank = _uniform_rank(ranks) if uniform_rank else max(ranks.values())
        if uniform_rank:
            for path, (a, b) in pairs.items():
                pairs[path] = F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - b.shape[1]))
        patterns = {} if uniform_rank or set(ranks.values()) == {rank} else ranks
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,  # scaling 1
            target_modules=sorted(ranks),
            fan_in_fan_out=any(_is_conv1d(self.model.get_submodule(path)) for path in pairs),
            task_type="CAUSAL_LM",
            base_model_name_or_path=model_source(self.model)["model"],
            inference_mode=True,
            rank_pattern=patterns,
            alpha_pattern=dict(patterns),
        )
        tensors = {
            f"base_model.model.{path}.lora_{half}.weight": tensor
            for path, pair in pairs.items()
            for half, tensor in zip("AB", pair, strict=True)
        }
        with atomic_write(folder) as scratch:
            scratch.mkdir()
            config.save_pretrained(str(scratch))
            save_tensors(scratch / "adapter_model.safetensors", tensors, {"format": "pt"})
        return Path(folder)

    def to_gguf_lora(self, path: str | Path) -> Path:
        """Writes the same function, scale included, as a GGUF adapter, which llama.cpp loads beside the base in GGUF.

        Numbers are float16. llama.cpp reads each module's rank off its tensors and scales by alpha / rank, or not at
        all where alpha is 0. So alpha is 0, and every module has a rank of its own.

        Raises:
            ModuleNotFoundError: If the package `gguf` is not installed.
            ValueError: If the method has no such form, or llama.cpp has no name for the family or one of its modules.
        """
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise MissingPackage('GGUF needs the package "gguf": pip install "ssetools[embedded]"') from error

        pairs, config = self._lora_pairs(), cast(Any, self.model.config)
        family = config.get_text_config().model_type
        name = _GGUF_FAMILIES.get(family, family)
        known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
        if name not in known:
            raise InvalidInput(f"llama.cpp has no model family {name!r} ({family}): export as peft or merged.")
        names = gguf.get_tensor_name_map(known[name], len(decoder_layers(self.model)))
        with atomic_write(path) as scratch:
            writer = gguf.GGUFWriter(scratch, name)
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
            for module, pair in pairs.items():
                tensor = names.get_name(re.sub("(language|text)_model\\.", "", module))  # of a multimodal wrapper
                if tensor is None:
                    raise InvalidInput(f"llama.cpp has no name for {module} of {family}: export as peft or merged.")
                for half, values in zip("ab", pair, strict=True):
                    writer.add_tensor(f"{tensor}.weight.lora_{half}", values.contiguous().half().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return Path(path)

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

    def _lora_pairs(self) -> LoraPairs:
        raise InvalidInput(f"{type(self).__name__} cannot be written as LoRA: merge() it (`--format merged`).")

    def _write(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict[str, Any]) -> Adapter:
        raise NotImplementedError


def adapter_facts(folder: str | Path) -> dict[str, Any]:
    """Reads `adapter.json`; a FileNotFoundError if `folder` holds no adapter."""
    path = Path(folder) / "adapter.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no adapter in {folder}: {path} does not exist.")
    about = read_json(path)
    if not isinstance(about, dict) or not isinstance(about.get("format"), str):
        raise InvalidInput(f"{path} does not describe an adapter: it names no format.")
    return about


def _check_free(model: nn.Module) -> None:
    if getattr(model, "ssetools_adapter", None) is not None:
        raise InvalidInput("This model already has an adapter attached: detach() it first.")
    check_base_model(model, "Training")


def check_scale(value: Any) -> float:
    """Returns a scale as a float; a ValueError if it is negative, not finite or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInput(f'scale is a number from 0 (the base) on, or "auto" in finetune; got {value!r}.')
    return float(value)


def _uniform_rank(ranks: Mapping[str, int]) -> int:
    widest = max(ranks, key=ranks.__getitem__)
    if ranks[widest] > UNIFORM_RANKS[-1]:
        raise InvalidInput(
            f"{widest} needs rank {ranks[widest]}, one for each trained neuron, and vLLM takes no rank above {UNIFORM_RANKS[-1]}: "
            "export without a uniform rank (for PEFT), merge, or train fewer neurons in a layer (a lower top_rate)."
        )
    return next(rank for rank in UNIFORM_RANKS if rank >= ranks[widest])


def _is_conv1d(module: Any) -> bool:
    layer = getattr(module, "base_layer", module)  # PEFT wraps what it adapts
    return "Conv1D" in (type(layer).__name__, getattr(getattr(layer, "source_cls", None), "__name__", ""))  # or 8-bit
