"""The neurons and the adapter of a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from ssetools.files import run_dir
from ssetools.languages import PROFILED_LANGUAGES
from ssetools.models import body_of, device_of, evaluation_mode, load_model, model_source, num_parameters
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.selection import neurons_per_layer, select_neurons, select_specific
from ssetools.neurons.sets import LayerNeurons, NeuronSets
from ssetools.steps import get_profile
from ssetools.text.sources import load_texts
from ssetools.text.windows import pack_tokens
from ssetools.training.adapter import Adapter
from ssetools.training.finetune import finetune
from ssetools.training.methods import PeftAdapter, WholeWeights
from ssetools.training.subnetwork import Subnetwork
from study.budget import select_budget
from study.harm.recipes import Recipe
from study.harm.text import RealText

_MOVING_TOKENS = 12_288  # of the short FFN run that ranks neurons by how far they move
_RIDGE = 0.1
_COVARIANCE_TOKENS = 256  # for each language


def attach(model: nn.Module, tokenizer, lang: str, recipe: Recipe, text: RealText, runs: str) -> Adapter:
    """Attaches what a recipe trains; nothing has changed yet."""
    torch.manual_seed(recipe.seed)  # LoRA starts from random numbers
    if recipe.method == "lora":
        return PeftAdapter.lora(model, recipe.rank)
    if recipe.method == "ia3":
        return PeftAdapter.ia3(model)
    if recipe.method in ("ffn", "full"):
        return WholeWeights(model, only_ffn=recipe.method == "ffn")
    neurons = neurons_of(model, tokenizer, lang, recipe, text, runs)
    inverses = _inverse_covariances(model, tokenizer, lang) if recipe.decorrelated else None
    subnet = Subnetwork.attach(model, neurons)
    for name in list(subnet.slices):
        layer, projection = name.split("-")
        if projection not in recipe.projections:
            subnet.slices.pop(name).handle.remove()
        elif inverses is not None and projection != "down":
            parametrize.register_parametrization(subnet.slices[name], "delta", _Times(inverses[int(layer)]))
    return subnet


def neurons_of(model: nn.Module, tokenizer, lang: str, recipe: Recipe, text: RealText, runs: str) -> LayerNeurons:
    """Selects the neurons of a recipe from the model's profile."""
    profile = get_profile(model, tokenizer, runs)
    if recipe.selection == "lape":
        return select_neurons(profile)[lang]
    per_layer = neurons_per_layer(model, recipe.share)
    if recipe.selection == "lape filled":
        return select_budget(profile, per_layer * len(find_ffn_blocks(model)))[lang]
    if recipe.selection == "specific mean":
        return select_specific(profile, per_layer, against="mean")[lang]
    specific = select_specific(profile, per_layer, against="top 3")
    if recipe.selection == "specific top 3":
        return specific[lang]
    if recipe.selection == "random":
        return specific.random_like(lang, recipe.seed)
    if recipe.selection == "specific moved":
        return _moved(lang, profile, per_layer, text, runs, model_source(model)["model"])
    raise ValueError(f"Unknown selection {recipe.selection!r}.")


def _moved(lang, profile, per_layer: int, text: RealText, runs: str, name: str) -> LayerNeurons:
    """Of the neurons with a positive score, those that a short FFN run moves furthest, equally many in each layer."""
    path = Path(run_dir(name, lang, "moved", 0, runs)) / "neurons.safetensors"
    if not path.exists():
        layers, width = profile.counts.shape[1:]
        positive = select_specific(profile, width, against="top 3").mask(lang)
        model, tokenizer = load_model(name, load_in_8bit=False)
        result = finetune(
            model, tokenizer, text.training(lang)[0], "ffn", max_tokens=_MOVING_TOKENS, batch_size=2, learning_rate=2e-5
        )
        moved = torch.stack([_distance(block, result.adapter) for block in find_ffn_blocks(model)])
        chosen = moved.masked_fill(~positive, -1).topk(min(per_layer, width), dim=1)
        ids = [x.sort().values[: int((v >= 0).sum())] for x, v in zip(chosen.indices, chosen.values, strict=True)]
        ids = [layer_ids[positive[i, layer_ids]] for i, layer_ids in enumerate(ids)]
        NeuronSets({lang: ids}, width, {"model": name, "selection": "specific moved"}).save(path)
        del layers
    return NeuronSets.load(path)[lang]


def _distance(block, adapter: Adapter) -> torch.Tensor:
    """How far each neuron's weights moved: the norm over its rows of gate and up and its column of down."""
    total = torch.zeros(block.num_neurons)
    for projection in block.projections:
        weight = projection.module.weight
        change = (weight.detach().float() - adapter.base_value(weight).detach().float()).square()
        total += change.sum(1 - projection.weight_axis).cpu()[: block.num_neurons]
    return total.sqrt()


class _Times(nn.Module):
    """A slice seen through a fixed matrix: the trained numbers times `matrix` are the delta."""

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the delta [k, hidden]."""
        return rows @ self.matrix


def _inverse_covariances(model: nn.Module, tokenizer, lang: str) -> list[torch.Tensor]:
    """Returns (C + 0.1)^-1 of each layer's FFN inputs on the other languages, scaled to a mean diagonal of 1."""
    blocks = find_ffn_blocks(model)
    sums = [torch.zeros(block.hidden_size, block.hidden_size, device=device_of(model)) for block in blocks]
    count = 0

    def gather(layer: int):
        def hook(module, args):
            x = args[0].detach().flatten(0, -2).float()
            sums[layer].add_(x.T @ x)

        return hook

    hooks = [b.inputs[0].module.register_forward_pre_hook(gather(i)) for i, b in enumerate(blocks)]
    try:
        with evaluation_mode(model), torch.no_grad():
            for other in (x for x in PROFILED_LANGUAGES if x != lang):
                texts = load_texts("udhr", other, "train")
                for window in pack_tokens(tokenizer, texts, _COVARIANCE_TOKENS, _COVARIANCE_TOKENS):
                    body_of(model)(input_ids=window[None].to(device_of(model)), use_cache=False)
                    count += len(window)
    finally:
        for hook in hooks:
            hook.remove()
    inverses = []
    for total in sums:
        inverse = torch.linalg.inv(total / count + _RIDGE * torch.eye(len(total), device=total.device))
        inverses.append(inverse / inverse.diagonal().mean())
    return inverses


def share_of(model: nn.Module, adapter: Adapter) -> float:
    """Returns the trained numbers over the model's weights."""
    return adapter.num_parameters / num_parameters(model)
