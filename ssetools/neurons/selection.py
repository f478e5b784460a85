"""Which neurons belong to which language: by entropy (LAPE), or by specificity within a budget.

LAPE is the method of Tang et al. 2024 (arXiv 2402.16438) with the settings of arXiv 2510.13580.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.models import num_parameters
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.sets import NeuronSets

_SMALL = 1e-4  # the score of a neuron that never fires for the others stays finite


def lape_entropy(profile: ActivationProfile) -> torch.Tensor:
    """Computes the entropy of each neuron's activation probabilities over languages.

    With p_k = counts_k / tokens_k and q_k = p_k / sum_j p_j, LAPE = -sum_k q_k ln q_k: 0 for a neuron that fires
    for one language alone, ln(languages) for one that fires for all alike. A neuron that never fires has entropy 0
    here and is left out by `select_neurons`.

    Args:
        profile: Activation counts of two or more languages.

    Returns:
        FloatTensor [layers, neurons], in nats.
    """
    return _entropy(profile.probabilities())


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    shares = (probabilities / probabilities.sum(0)).nan_to_num(0.0)
    return torch.where(shares > 0, -shares * shares.log(), 0.0).sum(0)


def select_neurons(
    profile: ActivationProfile, top_rate: float = 0.05, filter_rate: float = 0.95, activation_bar: float = 0.95
) -> NeuronSets:
    """Selects the language-specific neurons of every language in a profile.

    Neurons whose probability never exceeds the pooled `filter_rate` quantile are set aside; of the others the
    `top_rate` share (of all neurons) with the lowest entropy is taken, and each goes to every language in which
    its probability exceeds the pooled `activation_bar` quantile. Sets are relative to the profiled languages.

    Args:
        profile: Activation counts of two or more languages.
        top_rate: Share of all neurons to select, over all languages together.
        filter_rate: Quantile of all probabilities that a neuron must exceed in some language.
        activation_bar: Quantile of all probabilities that makes a selected neuron a language's own.

    Returns:
        One set per language, in the profile's order; a language may have no neurons.

    Raises:
        ValueError: For rates outside (0, 1], or a profile of fewer than two languages.
    """
    _check_rates(top_rate=top_rate, filter_rate=filter_rate, activation_bar=activation_bar)
    _check_languages(profile)
    probabilities = profile.probabilities()
    pooled = probabilities.flatten()
    entropy = _entropy(probabilities)
    never_active = (probabilities <= _quantile(pooled, filter_rate)).all(0)
    entropy[never_active] = torch.inf
    order = entropy.flatten().sort(stable=True)
    chosen = order.indices[: round(entropy.numel() * top_rate)]
    selected = torch.zeros(entropy.numel(), dtype=torch.bool)
    selected[chosen[entropy.flatten()[chosen].isfinite()]] = True
    owned = selected.view_as(entropy) & (probabilities > _quantile(pooled, activation_bar))
    layers = {language: [row.nonzero().flatten() for row in owned[k]] for k, language in enumerate(profile.languages)}
    rates = {"selection": "lape", "top_rate": top_rate, "filter_rate": filter_rate, "activation_bar": activation_bar}
    tokens = dict(zip(profile.languages, profile.tokens.tolist(), strict=True))
    metadata = {**profile.metadata, "profiled_languages": profile.languages, "tokens": tokens, **rates}
    return NeuronSets(layers, num_neurons=entropy.shape[1], metadata=metadata)


def select_budget(profile: ActivationProfile, neurons_per_language: int, activation_bar: float = 0.90) -> NeuronSets:
    """Selects as many neurons for every language: the lowest in entropy among those that it activates.

    Beside the pooled selection, which gives some languages ten times the neurons of others and some none.

    Args:
        profile: Activation counts of two or more languages.
        neurons_per_language: Neurons to take for each language, fewer where it activates fewer.
        activation_bar: Quantile of all probabilities above which a language activates a neuron.

    Returns:
        One set per language, in the profile's order.

    Raises:
        ValueError: If `neurons_per_language` is not positive, or `activation_bar` not in (0, 1].
    """
    if neurons_per_language < 1:
        raise InvalidInput(f"neurons_per_language must be at least 1, got {neurons_per_language}.")
    _check_rates(activation_bar=activation_bar)
    probabilities = profile.probabilities()
    entropy = _entropy(probabilities)
    active = probabilities > _quantile(probabilities.flatten(), activation_bar)
    layers = {}
    for language, mine in zip(profile.languages, active, strict=True):
        order = torch.where(mine, entropy, torch.inf).flatten().sort(stable=True).indices
        chosen = torch.zeros(entropy.numel(), dtype=torch.bool)
        chosen[order[: min(neurons_per_language, int(mine.sum()))]] = True
        layers[language] = [row.nonzero().flatten() for row in chosen.view_as(entropy)]
    rates = {"selection": "lape filled", "neurons_per_language": neurons_per_language, "activation_bar": activation_bar}
    metadata = {**profile.metadata, "profiled_languages": profile.languages, **rates}
    return NeuronSets(layers, num_neurons=entropy.shape[1], metadata=metadata)


def select_specific(
    profile: ActivationProfile, per_layer: int, against: Literal["mean", "top 3"] = "top 3"
) -> NeuronSets:
    """Selects for every language the neurons that fire more for it than for the others, within a budget.

    The score of neuron j for the target language t is `p_t ln((p_t + e) / (r + e))` with e = 1e-4, where p is the share
    of tokens on which the neuron fires, and r its mean over the other profiled languages ("mean") or over the three of
    them in which it fires most ("top 3"). The highest scores of each layer are taken, equally many in all layers, and
    none of 0 or less. What a layer cannot fill goes to the highest remaining positive scores of all layers.

    Args:
        profile: Activation counts of two or more languages.
        per_layer: Neurons to take in each layer on average; `neurons_per_layer` gives the number within a budget.
        against: What the target is compared with.

    Returns:
        One set per language, in the profile's order: `per_layer` times the number of layers, or all neurons with a
        positive score where there are fewer.

    Raises:
        ValueError: If `per_layer` is not positive, `against` is unknown, or the profile has fewer than two languages.
    """
    if per_layer < 1:
        raise InvalidInput(f"per_layer must be at least 1, got {per_layer}.")
    if against not in ("mean", "top 3"):
        raise InvalidInput(f"Unknown comparison against={against!r}: use 'mean' or 'top 3'.")
    _check_languages(profile)
    probabilities = profile.probabilities()
    layers = {}
    for k, language in enumerate(profile.languages):
        others = torch.cat([probabilities[:k], probabilities[k + 1 :]])
        compared = others if against == "mean" else others.topk(min(3, len(others)), dim=0).values
        target, rival = probabilities[k], compared.mean(0)
        score = target * ((target + _SMALL) / (rival + _SMALL)).log()
        layers[language] = [row.nonzero().flatten() for row in _highest(score, per_layer)]
    facts = {"selection": "specific", "against": against, "neurons_per_layer": per_layer}
    metadata = {**profile.metadata, "profiled_languages": profile.languages, **facts}
    return NeuronSets(layers, num_neurons=probabilities.shape[2], metadata=metadata)


def _highest(score: torch.Tensor, per_layer: int) -> torch.Tensor:
    """Marks the highest positive scores of each layer, then those of all layers until the budget is used."""
    layers, width = score.shape
    order = score.sort(dim=1, descending=True, stable=True).indices[:, : min(per_layer, width)]
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True) & (score > 0)
    left = per_layer * layers - int(chosen.sum())
    spare = score.masked_fill(chosen, -torch.inf).flatten()
    more = spare.sort(descending=True, stable=True).indices[:left]
    flat = chosen.flatten()
    flat[more[spare[more] > 0]] = True
    return flat.view_as(score)


def neurons_per_layer(model: nn.Module, share: float = 0.01) -> int:
    """Returns how many neurons of each layer have at most a share of the model's weights.

    A neuron's weights are its row of every input projection and its column of the down projection.

    Args:
        model: A causal language model; nothing is computed with it.
        share: Share of all weights of the model, embeddings included.

    Raises:
        ValueError: If the share is outside (0, 1], or too small for one neuron in each layer.
    """
    _check_rates(share=share)
    blocks = find_ffn_blocks(model)
    weights = sum(block.weights_per_neuron for block in blocks)
    number = int(share * num_parameters(model) / weights)
    if number < 1:
        least = math.ceil(1e6 * weights / num_parameters(model)) / 1e6
        raise InvalidInput(f"A share of {share} has less than one neuron in each layer: use {least} or more.")
    return min(number, blocks[0].num_neurons)


def _check_languages(profile: ActivationProfile) -> None:
    if len(profile.languages) < 2:
        raise InvalidInput(
            f"A selection compares languages; this profile has only {profile.languages}. Profile two or more."
        )


def _quantile(values: torch.Tensor, rate: float) -> torch.Tensor:
    # The k-th smallest value, as in the reference, not an interpolated quantile.
    return values.kthvalue(max(1, round(values.numel() * rate))).values


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 < rate <= 1:
            raise InvalidInput(f"{name} is a share above 0 and at most 1, got {rate}.")
