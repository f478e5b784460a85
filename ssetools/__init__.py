"""ssetools: make a language model better at one language by training only the neurons that fire for it.

Text -> activation counts -> neuron sets -> a small delta -> numbers and pictures, each step one module.
"""

from importlib.metadata import PackageNotFoundError, version

from ssetools.evaluation.drift import drift, sample_from_base
from ssetools.evaluation.inside import Alignment, alignment, weight_change
from ssetools.evaluation.perplexity import perplexity, score_languages, score_texts
from ssetools.evaluation.tasks.evaluate import evaluate
from ssetools.files import cache_dir, run_dir
from ssetools.languages import CONTRAST_LANGUAGES, PAPER_LANGUAGES, TARGET_LANGUAGES, Language, get_language
from ssetools.memory_plan import MemoryPlan, plan_memory
from ssetools.models import load_model
from ssetools.neurons.counts import ActivationProfile, profile_languages
from ssetools.neurons.ffn import FFNBlock, find_ffn_blocks
from ssetools.neurons.selection import lape_entropy, select_neurons
from ssetools.neurons.sets import NeuronSets, amplified, compare_neurons, deactivated, load_atlas
from ssetools.text.sources import load_parallel, load_texts
from ssetools.text.streams import TextStream, stream_texts
from ssetools.text.windows import pack_tokens
from ssetools.training.finetune import TrainingResult, finetune
from ssetools.training.loop import TrainingSettings
from ssetools.training.methods import METHODS, load_adapter
from ssetools.training.sharding import load_sharded
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
    "pack_tokens",
    "perplexity",
    "plan_memory",
    "profile_languages",
    "run_dir",
    "sample_from_base",
    "score_languages",
    "score_texts",
    "select_neurons",
    "stream_texts",
    "weight_change",
]
