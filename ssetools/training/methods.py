"""The methods that are compared, by name: what each trains, on which base, and at which rate by default."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.files import load_tensors, readable, save_tensors, whole_file
from ssetools.models import is_sharded, model_source, quantization_of
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.training.adapter import Adapter, adapter_facts, copy_into
from ssetools.training.exports import write_gguf_lora
from ssetools.training.subnetwork import Subnetwork


@dataclass(frozen=True)
class Method:
    """One way of training, and for some names also which neurons are trained.

    Attributes:
        trains: What moves, in words.
        learning_rate: Peak rate of AdamW by default.
        search: Rates that a comparison tries.
        needs_neurons: Whether the method is given neurons, or (LoRA at equal size) their number.
        on_8bit: Whether the base may be 8-bit.
        selection: For a subnetwork under the name of its neurons, the selection that the name stands for.
    """

    trains: str
    learning_rate: float
    search: tuple[float, ...]
    needs_neurons: bool = False
    on_8bit: bool = True
    selection: str | None = None


def _subnetwork(trains: str, selection: str | None, learning_rate: float = 1e-4) -> Method:
    return Method(trains, learning_rate, _NEURON_RATES, needs_neurons=True, selection=selection)


_NEURON_RATES = (3.3e-5, 1e-4, 3e-4, 9e-4, 27e-4, 81e-4)
_WEIGHT_RATES = (3.3e-6, 1e-5, 3e-5, 9e-5, 27e-5, 81e-5)

METHODS = {
    "lape": _subnetwork("the weights of the language's neurons", "lape"),
    "specific": _subnetwork("the weights of the neurons most specific to the language", "specific", 4e-4),
    "random": _subnetwork("as many other neurons, matched in depth", "random"),
    "random-uniform": _subnetwork("as many other neurons, at any depth", "random-uniform"),
    "subnetwork": _subnetwork("the weights of the neurons that it is given", None),
    "ffn": Method("all gate, up and down projections", 3e-5, _WEIGHT_RATES, on_8bit=False),
    "full": Method("all weights", 3e-5, _WEIGHT_RATES, on_8bit=False),
    "lora": Method("LoRA of rank 32 on gate, up and down projections", 1e-4, _NEURON_RATES),
    "lora-equal": Method(
        "LoRA with as many parameters as the language's neurons", 1e-4, _NEURON_RATES, needs_neurons=True
    ),
    "ia3": Method("IA3: factors on attention and FFN activations", 5e-3, (6.7e-4, 2e-3, 6e-3, 18e-3, 54e-3, 162e-3)),
}
"""The methods by name. Adapters train on an 8-bit base; "ffn" and "full" need the 16- or 32-bit one.

"lape", "specific", "random" and "random-uniform" all train a subnetwork; the name says which neurons are selected.
"""

SELECTIONS = ("lape", "specific", "random")
"""Which neurons a subnetwork trains: by LAPE, by specificity, or as many others drawn at random as LAPE selects."""


def method_with(method: str, selection: str) -> str:
    """Returns the name of a run: a subnetwork ("lape" or "subnetwork") takes the name of its selection.

    Args:
        method: A name of `METHODS`. "random" and "random-uniform" stay: controls of the selection's neurons.
        selection: A name of `SELECTIONS`.

    Raises:
        ValueError: For an unknown name.
    """
    check_method(method)
    if selection not in SELECTIONS:
        raise InvalidInput(f"Unknown selection {selection!r}: use one of {', '.join(SELECTIONS)}.")
    return selection if method in ("lape", "subnetwork") else method


def attach_method(model: nn.Module, method: str, neurons: Sequence[torch.Tensor] | None = None) -> Adapter:
    """Attaches what a method trains to a model; nothing changes until it is trained.

    Args:
        model: A causal language model; 8-bit for all methods but "ffn" and "full".
        method: A name of `METHODS`.
        neurons: Neuron ids for each layer, for the methods that need them.

    Raises:
        ValueError: For an unknown method, missing neurons, or a base that the method cannot train.
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
        return PeftAdapter.lora(model, rank_with(model, size))
    return Subnetwork.attach(model, neurons)


def load_adapter(folder: str | Path, model: nn.Module) -> Adapter:
    """Attaches a saved adapter of any method.

    Raises:
        FileNotFoundError: If `folder` holds no adapter.
        ValueError: If it was trained for another model.
    """
    form = adapter_facts(folder)["format"]
    for kind in (Subnetwork, PeftAdapter, WholeWeights):
        if kind.format == form:
            return kind.load(folder, model)
    raise InvalidInput(f"{folder} holds an adapter of unknown format {form!r}: was it made by a newer ssetools?")


def check_method(method: str) -> None:
    """Raises a ValueError naming the valid methods unless `method` is one."""
    if method not in METHODS:
        raise InvalidInput(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")


# --- weights ---


class WholeWeights(Adapter):
    """Every weight of the model, or every gate, up and down projection, trained in place.

    The optimiser moves float32 masters; a 16-bit model holds their rounded copies. What the weights were before is
    kept, so that the base can be switched back to: a full fine-tuning that can be taken off like an adapter.
    """

    format = "ssetools-weights"

    def __init__(self, model: nn.Module, only_ffn: bool):
        which = "ffn" if only_ffn else "full"
        if is_sharded(model):
            raise InvalidInput(
                f"Method {which!r} trains the weights themselves, and those of a sharded model are spread over processes, "
                "which exchange only what is trained beside it: load the model whole."
            )
        if kind := quantization_of(model):
            raise InvalidInput(
                f"Method {which!r} trains the weights themselves, and {kind} weights cannot be trained: load the model "
                "with load_in_8bit=False."
            )
        super().__init__(model)
        self.only_ffn = only_ffn
        self._weights = dict(model.named_parameters())
        if only_ffn:
            paths = {p.path for block in find_ffn_blocks(model) for p in (*block.inputs, block.down)}
            self._weights = {f"{path}.weight": self._weights[f"{path}.weight"] for path in sorted(paths)}
        self._before = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.masters = nn.ParameterDict(
            {name.replace(".", "-"): nn.Parameter(weight.detach().float().clone()) for name, weight in self.pairs()}
        )
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._register()

    def pairs(self):
        """Returns the trained weights by name, as the model holds them."""
        return self._weights.items()

    def collect_gradients(self):
        for name, weight in self.pairs():
            master = self.masters[name.replace(".", "-")]
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def publish(self):
        self._set_factor(self.scale)

    def base_value(self, weight):
        return next((self._before[name] for name, mine in self.pairs() if mine is weight), weight)

    def load_state_dict(self, state, *args, **options):
        found = super().load_state_dict(state, *args, **options)
        self.publish()
        return found

    def _set_factor(self, factor):
        for name, weight in self.pairs():
            before, trained = self._before[name], self.masters[name.replace(".", "-")].detach()
            # Not interpolated at the ends, where rounding could leave neither value exactly.
            value = {0: before, 1: trained}.get(factor)
            copy_into(weight, torch.lerp(before.float(), trained, factor) if value is None else value)

    def _merge(self):
        self._before = {name: weight.detach().clone() for name, weight in self.pairs()}

    def _take_off(self):
        self._set_factor(0.0)
        for weight in self._weights.values():
            weight.requires_grad_(False)
            weight.grad = None

    def _write(self, folder):
        # Not the model's own weights: off the model, these are the base's.
        tensors = {
            name: self.masters[name.replace(".", "-")].detach().to(weight.dtype) for name, weight in self.pairs()
        }
        save_tensors(folder / "adapter.safetensors", tensors, {"format": self.format})
        return {"only_ffn": self.only_ffn}

    @classmethod
    def _read(cls, folder, model, about):
        tensors, _ = load_tensors(folder / "adapter.safetensors", "trained weights")
        adapter = cls(model, about["only_ffn"])
        with torch.no_grad():
            for name, value in tensors.items():
                adapter.masters[name.replace(".", "-")].copy_(value)
        adapter.publish()
        return adapter


# --- peft_adapter ---


RANK, ALPHA_OVER_RANK, DROPOUT = 32, 2, 0.1
"""The paper's LoRA: rank 32, alpha 64, dropout 0.1 on gate, up and down projections."""


class PeftAdapter(Adapter):
    """A PEFT adapter on an 8-bit, 16-bit or 32-bit base."""

    format = "peft"

    def __init__(self, model: nn.Module, config):
        from peft import get_peft_model

        super().__init__(model)
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers is about to rename
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            self._wrapped = (get_peft_model(model, config),)
        for module in self._layers().values():  # float32 factors must not turn a bfloat16 model's states to float32
            module.register_forward_hook(lambda module, args, output: output.to(args[0].dtype))
        trained = {name: p for name, p in self.wrapped.named_parameters() if p.requires_grad}
        self.numbers = nn.ParameterDict({name.replace(".", "-"): p for name, p in trained.items()})
        self._dropouts = [m for name, m in self.wrapped.named_modules() if "lora_dropout" in name]
        self._off = contextlib.ExitStack()
        self._trained: dict[str, torch.Tensor] = {}  # IA3's factors as trained, while the model has them scaled
        self.dropout(False)
        self._register()

    @classmethod
    def lora(cls, model: nn.Module, rank: int = RANK) -> PeftAdapter:
        """Attaches LoRA to every gate, up and down projection."""
        from peft import LoraConfig

        paths = sorted({p.path for block in find_ffn_blocks(model) for p in (*block.inputs, block.down)})
        config = LoraConfig(
            r=rank,
            lora_alpha=ALPHA_OVER_RANK * rank,
            lora_dropout=DROPOUT,
            target_modules=paths,
            task_type="CAUSAL_LM",
            fan_in_fan_out=find_ffn_blocks(model)[0].down.transposed,
        )
        return cls(model, config)

    @classmethod
    def ia3(cls, model: nn.Module) -> PeftAdapter:
        """Attaches IA3 to the modules that PEFT scales in this family.

        Raises:
            ValueError: If PEFT knows no modules for the family.
        """
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        family = model.config.model_type
        if family not in KNOWN:
            raise InvalidInput(
                f"PEFT knows no modules to scale with IA3 in {family!r} models; it knows {sorted(KNOWN)}."
            )
        return cls(model, IA3Config(task_type="CAUSAL_LM"))

    @property
    def wrapped(self):
        """The `peft.PeftModel` around the base."""
        return self._wrapped[0]

    @property
    def kind(self) -> str:
        """PEFT's name of the method: "LORA" or "IA3"."""
        return str(self.wrapped.peft_config["default"].peft_type.value)

    def dropout(self, active):
        for module in self._dropouts:
            module.train(active)

    def _set_factor(self, factor):
        self._off.close()
        for module in self._layers().values():
            if hasattr(module, "set_scale"):  # LoRA's
                module.set_scale("default", factor)
        if self.kind == "IA3":
            self._trained = self._trained or {name: p.detach().clone() for name, p in self.numbers.items()}
            for name, parameter in self.numbers.items():
                copy_into(parameter, torch.lerp(torch.ones_like(parameter), self._trained[name], factor))
            if factor == 1:
                self._trained = {}
        if factor == 0:
            self._off.enter_context(self.wrapped.disable_adapter())

    def _layers(self):
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {path: m for path, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)}

    def _merge(self):
        for module in self._layers().values():
            module.merge()

    def _take_off(self):
        # Not PEFT's own unload: for IA3 on 8-bit layers it refuses, as if it were to merge.
        for path, module in self._layers().items():
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, module.get_base_layer())
        del self.model.peft_config
        self.model.requires_grad_(False)

    def _write(self, folder):
        self.check_attached()  # PEFT would write a checkpoint without a tensor
        self._set_factor(1.0)
        self._checkpoint(folder)
        self._set_factor(self.scale if self.active else 0.0)
        return {"peft_type": self.kind}

    def to_gguf_lora(self, path):
        if self.kind != "LORA":
            return super().to_gguf_lora(path)
        scaling = self.scale * ALPHA_OVER_RANK
        pairs = {
            name: tuple(getattr(layer, f"lora_{half}")["default"].weight.detach().cpu() for half in "AB")
            for name, layer in self._layers().items()
        }
        return write_gguf_lora(self.model, {name: (a, scaling * b) for name, (a, b) in pairs.items()}, path)

    def to_peft(self, folder, uniform_rank=False):
        self.check_attached()
        with whole_file(folder) as scratch:
            self._set_factor(self.scale)
            self._checkpoint(scratch)
            self._set_factor(self.scale if self.active else 0.0)
            if self.kind == "LORA":  # whose scale is no tensor: it goes into one half of each pair
                path = scratch / "adapter_model.safetensors"
                tensors, facts = load_tensors(path, "a PEFT adapter")
                scaled = {name: x * self.scale if ".lora_B." in name else x for name, x in tensors.items()}
                save_tensors(path, scaled, facts)
        return Path(folder)

    def _checkpoint(self, folder):
        # By its name, not by the folder in which this machine keeps it; and without asking the hub for its vocabulary.
        self.wrapped.peft_config["default"].base_model_name_or_path = model_source(self.model)["model"]
        self.wrapped.save_pretrained(folder, save_embedding_layers=False)
        readable(folder)
        (folder / "README.md").unlink(missing_ok=True)

    @classmethod
    def _read(cls, folder, model, about):
        from peft import PeftConfig, set_peft_model_state_dict

        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        config.base_model_name_or_path = None  # the name was compared already
        adapter = cls(model, config)
        tensors, _ = load_tensors(folder / "adapter_model.safetensors", "a PEFT adapter")
        with torch.no_grad():
            set_peft_model_state_dict(adapter.wrapped, tensors)
        return adapter


def rank_with(model: nn.Module, parameters: int) -> int:
    """Returns the LoRA rank on gate, up and down projections whose number of parameters is nearest to `parameters`."""
    modules = {p.path: p.module for block in find_ffn_blocks(model) for p in (*block.inputs, block.down)}
    per_rank = sum(_inputs_and_outputs(module) for module in modules.values())
    return max(1, round(parameters / per_rank))


def _inputs_and_outputs(module: nn.Module) -> int:
    return module.in_features + module.out_features if hasattr(module, "in_features") else sum(module.weight.shape)
