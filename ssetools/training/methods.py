"""The methods that are compared, by name: what each trains, on which base, and at which rate by default."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import atomic_write, load_tensors, readable, save_tensors
from ssetools.models import is_sharded, model_source, quantization_of
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.training.adapter import Adapter, LoraPairs, adapter_facts
from ssetools.training.subnetwork import Subnetwork


@dataclass(frozen=True)
class Method:
    """One way of training, and for some names also which neurons are trained.

    Attributes:
        trains: What moves, in words.
        learning_rate: Peak rate of AdamW by default.
        needs_neurons: Whether the method is given neurons, or (LoRA at equal size) their number.
        on_8bit: Whether the base may be 8-bit.
        selection: For a subnetwork under the name of its neurons, the selection that the name stands for.
    """

    trains: str
    learning_rate: float
    needs_neurons: bool = False
    on_8bit: bool = True
    selection: str | None = None


METHODS = {
    "subnetwork": Method("the weights of the neurons that it is given", 4e-4, True),
    "specific": Method("the weights of the neurons most specific to the language", 4e-4, True, selection="specific"),
    "lape": Method("the weights of the language's neurons by LAPE", 8e-4, True, selection="lape"),
    "random": Method("as many other neurons, matched in depth", 4e-4, True, selection="random"),
    "random-uniform": Method("as many other neurons, at any depth", 4e-4, True, selection="random-uniform"),
    "ffn": Method("all gate, up and down projections", 2e-5, on_8bit=False),
    "full": Method("all weights", 1.5e-5, on_8bit=False),
    "lora": Method("LoRA of rank 32 on gate, up and down projections", 3e-4),
    "lora-equal": Method("LoRA with as many parameters as the language's neurons", 3e-4, True),
    "ia3": Method("IA3: factors on attention and FFN activations", 1.2e-2),
}
"""The methods by name; those with a selection train a subnetwork. The rates are of the study at equal harm: high, for batches
of two windows and a scale that is chosen afterwards (`choose_scale`)."""

SELECTIONS = ("specific", "lape", "random")
"""Which neurons a subnetwork trains: by specificity, by LAPE, or as many as are specific, drawn at random."""


def method_with(method: str, selection: str) -> tuple[str, str]:
    """Returns the name of a run, and the selection ("specific" or "lape") that its neuron sets come from.

    "subnetwork" takes the name of its selection. "specific" and "lape" are selections themselves, whatever `selection` is;
    "random", "random-uniform" and "lora-equal" take their size from its neurons. A ValueError for an unknown name.
    """
    check_method(method)
    if selection not in SELECTIONS:
        raise InvalidInput(f"Unknown selection {selection!r}: use one of {', '.join(SELECTIONS)}.")
    name = selection if method == "subnetwork" else method
    source = name if name in ("specific", "lape") else selection
    return name, "lape" if source == "lape" else "specific"


def attach_method(model: nn.Module, method: str, neurons: Sequence[torch.Tensor] | None = None) -> Adapter:
    """Attaches what a method trains to a model; a ValueError if it cannot. Nothing changes until it is trained.

    Args:
        model: A causal language model; 8-bit for all methods but "ffn" and "full".
        method: A name of `METHODS`.
        neurons: Neuron ids for each layer, for the methods that need them.
    """
    check_method(method)
    if method == "ia3":
        return PeftAdapter.ia3(model)
    if method == "lora":
        return PeftAdapter.lora(model)
    if method in ("ffn", "full"):
        return WholeWeights(model, only_ffn=method == "ffn")
    if neurons is None:
        raise InvalidInput(f'Method {method!r} needs neurons=, such as neurons["yo"] of a NeuronSets.')
    if method == "lora-equal":
        size = sum(len(ids) for ids in neurons) * find_ffn_blocks(model)[0].weights_per_neuron
        return PeftAdapter.lora(model, max(1, round(size / sum(_ffn_modules(model).values()))))
    return Subnetwork.attach(model, neurons)


def load_adapter(folder: str | Path, model: nn.Module) -> Adapter:
    """Attaches a saved adapter of any method; errors as of `Subnetwork.load`."""
    form = adapter_facts(folder)["format"]
    for kind in (Subnetwork, PeftAdapter, WholeWeights):
        if kind.format == form:
            return kind.load(folder, model)
    raise InvalidInput(f"{folder} holds an adapter of unknown format {form!r}: was it made by a newer ssetools?")


def check_method(method: str) -> None:
    """Raises a ValueError naming the valid methods unless `method` is one."""
    if method not in METHODS:
        raise InvalidInput(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")


class WholeWeights(Adapter):
    """Every weight of the model, or every gate, up and down projection, trained in place.

    The optimiser moves float32 masters; a 16-bit model holds their rounded copies. What the weights were before is
    kept, so that the base can be switched back to: a full fine-tuning that can be taken off like an adapter.
    """

    format = "ssetools-weights"
    _beside_the_weights = False

    def __init__(self, model: nn.Module, only_ffn: bool):
        what = f"Method {'ffn' if only_ffn else 'full'!r} trains the weights themselves, and"
        if is_sharded(model):
            raise InvalidInput(f"{what} those of a sharded model are spread over processes: load the model whole.")
        if kind := quantization_of(model):
            raise InvalidInput(f"{what} {kind} weights cannot be trained: load the model with load_in_8bit=False.")
        super().__init__(model)
        self.only_ffn = only_ffn
        self._weights = dict(model.named_parameters())
        if only_ffn:
            self._weights = {f"{x}.weight": self._weights[f"{x}.weight"] for x in _ffn_modules(model)}
        self._before = [weight.detach().clone() for weight in self._weights.values()]
        self.masters = nn.ParameterList([weight.detach().float().clone() for weight in self._weights.values()])
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._register()

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Returns the float32 masters of the trained weights by name."""
        return dict(zip(self._weights, (master.detach() for master in self.masters), strict=True))

    def collect_gradients(self) -> None:
        for weight, master in zip(self._weights.values(), self.masters, strict=True):
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def publish(self) -> None:
        self._set_factor(self.scale)

    def base_value(self, weight: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._weights.values(), self._before, strict=True)
        return next((before for mine, before in pairs if mine is weight), weight)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        keys = super().load_state_dict(*args, **options)
        self.publish()
        return keys

    def _set_factor(self, factor: float) -> None:
        for weight, before, master in zip(self._weights.values(), self._before, self.masters, strict=True):
            # Not interpolated at the ends, where rounding could leave neither value exactly.
            value = before if factor == 0 else master if factor == 1 else torch.lerp(before.float(), master, factor)
            weight.data.copy_(value)

    def _merge(self) -> None:
        self._before = [weight.detach().clone() for weight in self._weights.values()]

    def _take_off(self) -> None:
        self._set_factor(0.0)
        for weight in self._weights.values():
            weight.requires_grad_(False)
            weight.grad = None

    def _write(self, folder: Path) -> dict[str, Any]:
        # Not the model's own weights: off the model, these are the base's.
        tensors = {name: x.to(self._weights[name].dtype) for name, x in self.trained_weights().items()}
        save_tensors(folder / "adapter.safetensors", tensors, {"format": self.format})
        return {"only_ffn": self.only_ffn}

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict[str, Any]) -> WholeWeights:
        tensors, _ = load_tensors(folder / "adapter.safetensors", "trained weights")
        adapter = cls(model, about["only_ffn"])
        for name, master in adapter.trained_weights().items():
            master.data.copy_(tensors[name])
        adapter.publish()
        return adapter


RANK, ALPHA_OVER_RANK, DROPOUT = 32, 2, 0.1
"""The paper's LoRA: rank 32, alpha 64, dropout 0.1 on gate, up and down projections."""


class PeftAdapter(Adapter):
    """LoRA or IA3 of PEFT (`kind`: "LORA", "IA3"). A saved folder is a PEFT checkpoint of it at scale 1."""

    format = "peft"
    wrapped: Any  # the `peft.PeftModel` around the base

    def __init__(self, model: nn.Module, config: Any):
        from peft import get_peft_model

        super().__init__(model)
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers is about to rename
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            # No submodule, as the base in it is none.
            object.__setattr__(self, "wrapped", get_peft_model(cast(Any, model), config))
        self.kind = str(config.peft_type.value)
        for module in self._layers().values():  # float32 factors must not turn a bfloat16 model's states to float32
            module.register_forward_hook(lambda module, args, output: output.to(args[0].dtype))
        trained = {name: p for name, p in self.wrapped.named_parameters() if p.requires_grad}
        self.numbers = nn.ParameterDict({name.replace(".", "-"): p for name, p in trained.items()})
        self._dropouts = [m for name, m in self.wrapped.named_modules() if "lora_dropout" in name]
        self._off = contextlib.ExitStack()
        self._factors: dict[str, torch.Tensor] = {}  # IA3's as trained, while the model has them scaled
        self.dropout(False)
        self._register()

    @classmethod
    def lora(cls, model: nn.Module, rank: int = RANK) -> PeftAdapter:
        """Attaches LoRA to every gate, up and down projection."""
        from peft import LoraConfig

        config = LoraConfig(
            r=rank,
            lora_alpha=ALPHA_OVER_RANK * rank,
            lora_dropout=DROPOUT,
            target_modules=list(_ffn_modules(model)),
            task_type="CAUSAL_LM",
            fan_in_fan_out=find_ffn_blocks(model)[0].down.transposed,
        )
        return cls(model, config)

    @classmethod
    def ia3(cls, model: nn.Module) -> PeftAdapter:
        """Attaches IA3 to the modules that PEFT scales in this family; a ValueError if it knows none."""
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        family = cast(Any, model.config).model_type
        if family not in KNOWN:
            raise InvalidInput(f"PEFT knows no modules for IA3 in {family!r} models, only in {sorted(KNOWN)}.")
        return cls(model, IA3Config(task_type="CAUSAL_LM"))

    def dropout(self, active: bool) -> None:
        for module in self._dropouts:
            module.train(active)

    def _layers(self) -> dict[str, Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {path: m for path, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)}

    def _set_factor(self, factor: float) -> None:
        self._off.close()
        if self.kind == "LORA":
            for module in self._layers().values():
                module.set_scale("default", factor)
        else:
            self._factors = self._factors or {name: p.detach().clone() for name, p in self.numbers.items()}
            for name, parameter in self.numbers.items():
                parameter.data.copy_(torch.lerp(torch.ones_like(parameter), self._factors[name], factor))
            self._factors = {} if factor == 1 else self._factors
        if factor == 0:
            self._off.enter_context(self.wrapped.disable_adapter())

    @contextlib.contextmanager
    def _at(self, factor: float) -> Iterator[None]:
        self.check_attached()  # PEFT would write a checkpoint without a tensor
        self._set_factor(factor)
        try:
            yield
        finally:
            self._set_factor(self.scale if self.active else 0.0)

    def _merge(self) -> None:
        for module in self._layers().values():
            module.merge()

    def _take_off(self) -> None:
        # Not PEFT's own unload: for IA3 on 8-bit layers it refuses, as if it were to merge.
        for path, module in self._layers().items():
            self.model.set_submodule(path, module.get_base_layer())
        del self.model.peft_config
        self.model.requires_grad_(False)

    def _lora_pairs(self) -> LoraPairs:
        if self.kind != "LORA":
            return super()._lora_pairs()
        pairs = {}
        with self._at(self.scale):
            for path, module in self._layers().items():
                a, b = (half["default"].weight.detach().cpu() for half in (module.lora_A, module.lora_B))
                pairs[path] = a, b * module.scaling["default"]
        return pairs

    def to_peft(self, folder: str | Path, uniform_rank: bool = False) -> Path:
        if self.kind == "LORA":
            return super().to_peft(folder, uniform_rank)
        with self._at(self.scale), atomic_write(folder) as scratch:
            self._save_checkpoint(scratch)
        return Path(folder)

    def _save_checkpoint(self, folder: Path) -> None:
        # By its name, not by the folder in which this machine keeps it; and without asking the hub for its vocabulary.
        self.wrapped.peft_config["default"].base_model_name_or_path = model_source(self.model)["model"]
        self.wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        readable(folder)
        (folder / "README.md").unlink(missing_ok=True)

    def _write(self, folder: Path) -> dict[str, Any]:
        with self._at(1.0):
            self._save_checkpoint(folder)
        return {"peft_type": self.kind}

    @classmethod
    def _read(cls, folder: Path, model: nn.Module, about: dict[str, Any]) -> PeftAdapter:
        from peft import PeftConfig, set_peft_model_state_dict

        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.base_model_name_or_path = None  # the name was compared already
        adapter = cls(model, config)
        tensors, _ = load_tensors(folder / "adapter_model.safetensors", "a PEFT adapter")
        keys = set_peft_model_state_dict(adapter.wrapped, tensors)
        missing = [name for name in keys.missing_keys if "lora_" in name or "ia3_" in name]
        if missing or keys.unexpected_keys:
            raise InvalidInput(
                f"{folder} does not fit the modules of this model, such as {[*missing, *keys.unexpected_keys][0]}: load the "
                "model in the class in which it was trained."
            )
        return adapter


def _ffn_modules(model: nn.Module) -> dict[str, int]:
    """Returns the gate, up and down projections by path, a fused one once, with the size of a LoRA pair of rank 1."""
    blocks = find_ffn_blocks(model)
    return dict(sorted((p.path, p.width + block.hidden_size) for block in blocks for p in block.projections))
