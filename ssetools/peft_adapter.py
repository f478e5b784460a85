"""LoRA and IA3 as PEFT makes them, behind the same calls as a subnetwork; the folder they save is PEFT's own."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import nn

from ssetools.adapter import Adapter
from ssetools.ffn import find_ffn_blocks
from ssetools.models import model_source
from ssetools.paths import readable
from ssetools.tensors import load_tensors

RANK, ALPHA_OVER_RANK, DROPOUT = 32, 2, 0.1
"""The paper's LoRA: rank 32, alpha 64, dropout 0.1 on gate, up and down projections."""


class PeftAdapter(Adapter):
    """A PEFT adapter on an 8-bit, 16-bit or 32-bit base."""

    format = "peft"

    def __init__(self, model: nn.Module, config):
        from peft import get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        super().__init__(model)
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers is about to rename
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            self._wrapped = (get_peft_model(model, config),)
        for module in self.wrapped.modules():  # float32 factors must not turn a bfloat16 model's states to float32
            if isinstance(module, BaseTunerLayer):
                module.register_forward_hook(lambda module, args, output: output.to(args[0].dtype))
        trained = {name: p for name, p in self.wrapped.named_parameters() if p.requires_grad}
        self.numbers = nn.ParameterDict({name.replace(".", "-"): p for name, p in trained.items()})
        self._dropouts = [m for name, m in self.wrapped.named_modules() if "lora_dropout" in name]
        self._off = contextlib.ExitStack()
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
            raise ValueError(f"PEFT knows no modules to scale with IA3 in {family!r} models; it knows {sorted(KNOWN)}.")
        return cls(model, IA3Config(task_type="CAUSAL_LM"))

    @property
    def wrapped(self):
        """The `peft.PeftModel` around the base."""
        return self._wrapped[0]

    def dropout(self, active):
        for module in self._dropouts:
            module.train(active)

    def _switch(self, on):
        if on:
            self._off.close()
        else:
            self._off.enter_context(self.wrapped.disable_adapter())

    def _take_off(self):
        # Not PEFT's own unload: for IA3 on 8-bit layers it refuses, as if it were to merge.
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, module in list(self.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, name = path.rpartition(".")
                setattr(self.model.get_submodule(parent), name, module.get_base_layer())
        del self.model.peft_config
        self.model.requires_grad_(False)

    def _write(self, folder):
        self._check_attached()  # PEFT would write a checkpoint without a tensor
        # By its name, not by the folder in which this machine keeps it; and without asking the hub for its vocabulary.
        self.wrapped.peft_config["default"].base_model_name_or_path = model_source(self.model)["model"]
        self.wrapped.save_pretrained(folder, save_embedding_layers=False)
        readable(folder)
        (folder / "README.md").unlink(missing_ok=True)
        return {"peft_type": str(self.wrapped.peft_config["default"].peft_type.value)}

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
