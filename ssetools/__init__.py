"""ssetools: make a language model better at one language by training only the neurons that fire for it.

Text -> activation counts -> neuron sets -> a small delta -> numbers and pictures, each step one module.

The public names are imported when they are first used, so that `import ssetools` and `ssetools --help` do not wait for
PyTorch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssetools.evaluation.drift import drift, sample_from_base
    from ssetools.evaluation.inside import Alignment, alignment, weight_change
    from ssetools.evaluation.perplexity import perplexity, score_languages, score_texts
    from ssetools.evaluation.tasks.evaluate import evaluate
    from ssetools.files import cache_dir, run_dir
    from ssetools.languages import CONTRAST_LANGUAGES, PAPER_LANGUAGES, TARGET_LANGUAGES, Language, get_language
    from ssetools.memory_plan import MemoryPlan, plan_memory
    from ssetools.models import load_model, load_sharded
    from ssetools.neurons.counts import ActivationProfile, profile_languages
    from ssetools.neurons.ffn import FFNBlock, find_ffn_blocks
    from ssetools.neurons.selection import lape_entropy, neurons_per_layer, select_neurons, select_specific
    from ssetools.neurons.sets import NeuronSets, amplified, compare_neurons, deactivated, load_atlas
    from ssetools.text.sources import load_parallel, load_texts
    from ssetools.text.streams import TextStream, stream_texts
    from ssetools.text.windows import pack_tokens
    from ssetools.training.finetune import TrainingResult, finetune
    from ssetools.training.loop import TrainingSettings
    from ssetools.training.methods import METHODS, load_adapter
    from ssetools.training.subnetwork import Subnetwork

try:
    __version__ = version("ssetools")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "CONTRAST_LANGUAGES",
    "METHODS",
    "PAPER_LANGUAGES",
    "TARGET_LANGUAGES",
    "ActivationProfile",
    "Alignment",
    "FFNBlock",
    "Language",
    "MemoryPlan",
    "NeuronSets",
    "Subnetwork",
    "TextStream",
    "TrainingResult",
    "TrainingSettings",
    "alignment",
    "amplified",
    "cache_dir",
    "compare_neurons",
    "deactivated",
    "drift",
    "evaluate",
    "find_ffn_blocks",
    "finetune",
    "get_language",
    "lape_entropy",
    "load_adapter",
    "load_atlas",
    "load_model",
    "load_parallel",
    "load_sharded",
    "load_texts",
    "neurons_per_layer",
    "pack_tokens",
    "perplexity",
    "plan_memory",
    "profile_languages",
    "run_dir",
    "sample_from_base",
    "score_languages",
    "score_texts",
    "select_neurons",
    "select_specific",
    "stream_texts",
    "weight_change",
]

_NAMES = {
    "evaluation.drift": (
        "drift",
        "sample_from_base",
    ),
    "evaluation.inside": (
        "Alignment",
        "alignment",
        "weight_change",
    ),
    "evaluation.perplexity": (
        "perplexity",
        "score_languages",
        "score_texts",
    ),
    "evaluation.tasks.evaluate": ("evaluate",),
    "files": (
        "cache_dir",
        "run_dir",
    ),
    "languages": (
        "CONTRAST_LANGUAGES",
        "PAPER_LANGUAGES",
        "TARGET_LANGUAGES",
        "Language",
        "get_language",
    ),
    "memory_plan": (
        "MemoryPlan",
        "plan_memory",
    ),
    "models": (
        "load_model",
        "load_sharded",
    ),
    "neurons.counts": (
        "ActivationProfile",
        "profile_languages",
    ),
    "neurons.ffn": (
        "FFNBlock",
        "find_ffn_blocks",
    ),
    "neurons.selection": (
        "lape_entropy",
        "neurons_per_layer",
        "select_neurons",
        "select_specific",
    ),
    "neurons.sets": (
        "NeuronSets",
        "amplified",
        "compare_neurons",
        "deactivated",
        "load_atlas",
    ),
    "text.sources": (
        "load_parallel",
        "load_texts",
    ),
    "text.streams": (
        "TextStream",
        "stream_texts",
    ),
    "text.windows": ("pack_tokens",),
    "training.finetune": (
        "TrainingResult",
        "finetune",
    ),
    "training.loop": ("TrainingSettings",),
    "training.methods": (
        "METHODS",
        "load_adapter",
    ),
    "training.subnetwork": ("Subnetwork",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_SUBMODULES = {module.partition(".")[0] for module in _NAMES} | {"loss", "plots", "processes", "steps"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = found
        return found
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
