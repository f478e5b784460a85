"""Selects the neurons of each language from activation counts: by entropy (LAPE), or by specificity within a budget.

LAPE is the method of Tang et al. 2024 (arXiv 2402.16438) with the settings of arXiv 2510.13580.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.models import num_parameters
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.sets import NeuronSets

_EPSILON = 1e-4
_ROUNDING = 1e-12  # specificity scores nearer to 0 come from the rounding of equal rates


def lape_entropy(profile: ActivationProfile) -> torch.Tensor:
    """Computes the entropy of each neuron's activation probabilities over languages.

    With p_k = counts_k / tokens_k and q_k = p_k / sum_j p_j, LAPE = -sum_k q_k ln q_k: 0 for a neuron that fires
    for one language alone, ln(languages) for one that fires equally often for all. A neuron that never fires has
    entropy 0 here and is left out by `select_neurons`.

    Args:
        profile: Activation counts of two or more languages.

    Returns:
        FloatTensor [layers, neurons], in nats.
    """
    probabilities = profile.probabilities()
    shares = (probabilities / probabilities.sum(0)).nan_to_num(0.0)
    return torch.where(shares > 0, -shares * shares.log(), 0.0).sum(0)


def select_neurons(
    profile: ActivationProfile, top_rate: float = 0.05, filter_rate: float = 0.95, activation_bar: float = 0.95
) -> NeuronSets:
    """Selects the language-specific neurons of every language in a profile by LAPE.

    Neurons whose probability never exceeds the pooled `filter_rate` quantile are set aside; of the others the
    `top_rate` share (of all neurons) with the lowest entropy is taken, and each goes to every language in which
    its probability exceeds the pooled `activation_bar` quantile. Sets are relative to the profiled languages.

    Args:
        profile: Activation counts of two or more languages; a ValueError for one.
        top_rate: Share of all neurons to select, over all languages together, in (0, 1] like the other rates.
        filter_rate: Quantile of all probabilities that a neuron must exceed in some language.
        activation_bar: Quantile of all probabilities that a selected neuron must exceed in a language to belong to it.

    Returns:
        One set per language, in the profile's order; a language may have no neurons.
    """
    rates = {"top_rate": top_rate, "filter_rate": filter_rate, "activation_bar": activation_bar}
    _check_shares(**rates)
    _check_languages(profile)
    probabilities = profile.probabilities()
    entropy = lape_entropy(profile)
    never_active = (probabilities <= _quantile(probabilities, filter_rate)).all(0)
    lowest = entropy.masked_fill(never_active, torch.inf).flatten().sort(stable=True)
    chosen = lowest.indices[: round(entropy.numel() * top_rate)]
    selected = torch.zeros(entropy.numel(), dtype=torch.bool)
    selected[chosen[lowest.values[: len(chosen)].isfinite()]] = True
    owned = selected.view_as(entropy) & (probabilities > _quantile(probabilities, activation_bar))
    return _neuron_sets(profile, owned, "lape", rates)


def select_specific(
    profile: ActivationProfile, per_layer: int, against: Literal["top 3", "mean"] = "top 3"
) -> NeuronSets:
    """Selects for every language the neurons that fire more often for it than for others, equally many in each layer.

    With p the share of a language's tokens on which a neuron fires, its score is s = p ln((p + 1e-4) / (r + 1e-4)),
    where r is the mean of its shares in the three other languages in which it fires most, or in all others. Each layer
    gives the neurons with the highest scores, none with a score of 0 or less. What layers cannot give is filled with
    the highest positive scores that remain in the whole model. Of equal scores, the lower layer and neuron come first.

    Args:
        profile: Activation counts of two or more languages; a ValueError for one.
        per_layer: Neurons to take in each layer, 1 or more; `neurons_per_layer` gives the number within a budget.
        against: "top 3" for the three other languages with the highest share (all others if there are fewer), "mean"
            for all other languages.

    Returns:
        One set per language, in the profile's order: `per_layer` * layers neurons, or all that have a positive score.
    """
    if against not in ("top 3", "mean"):
        raise InvalidInput(f'against is "top 3" or "mean", got {against!r}.')
    if per_layer < 1:
        raise InvalidInput(f"per_layer must be at least 1, got {per_layer}.")
    _check_languages(profile)
    scores = _specificity(profile, len(profile.languages) - 1 if against == "mean" else 3)
    chosen = _highest(scores, per_layer) & (scores > 0)
    for own, taken in zip(scores.flatten(1), chosen.flatten(1), strict=True):  # views: `chosen` is filled in place
        left = per_layer * scores.shape[1] - int(taken.sum())
        taken |= _highest(own.masked_fill(taken, 0.0), left) & (own > 0)
    parameters = {"per_layer": per_layer, "against": against, "epsilon": _EPSILON}
    return _neuron_sets(profile, chosen, "specific", parameters)


def _specificity(profile: ActivationProfile, others: int) -> torch.Tensor:
    """Returns the scores of `select_specific` against so many others, float64 [languages, layers, neurons]."""
    rates = profile.counts.double() / profile.tokens.double()[:, None, None]
    others = min(others, len(rates) - 1)
    highest, languages = rates.topk(others + 1, dim=0)
    scores = torch.empty_like(rates)
    for number, own in enumerate(rates):
        # Left out is the language itself, or the lowest of the rates where the language is not among them.
        left_out = languages == number
        left_out[-1] |= ~left_out.any(0)
        reference = highest.masked_fill(left_out, 0.0).sum(0) / others
        scores[number] = own * ((own + _EPSILON) / (reference + _EPSILON)).log()
    return scores.masked_fill(scores.abs() < _ROUNDING, 0.0)


def neurons_per_layer(model: nn.Module, share: float = 0.01) -> int:
    """Returns how many neurons of each layer hold a share of the model's weights, rounded down; at most all of them.

    That is floor(share * weights / sum over layers of the weights of a neuron): 77 for the embedded model, where 1% of
    268,098,176 weights is divided by 18 layers * 3 * 640.

    Args:
        model: A causal language model.
        share: Share of all weights (embeddings and head included, tied ones once) that the neurons may hold, in (0, 1];
            a ValueError if it holds less than one neuron a layer.
    """
    _check_shares(share=share)
    weights, blocks = num_parameters(model), find_ffn_blocks(model)
    count = int(share * weights / sum(block.weights_per_neuron for block in blocks))
    if count < 1:
        raise InvalidInput(f"A share of {share} of {weights:,} weights is less than a neuron in each layer: raise it.")
    return min(count, blocks[0].num_neurons)


def _neuron_sets(
    profile: ActivationProfile, chosen: torch.Tensor, selection: str, parameters: dict[str, Any]
) -> NeuronSets:
    """Makes sets of a BoolTensor [languages, layers, neurons]; their metadata say how they were selected."""
    sets = {
        language: [layer.nonzero().flatten() for layer in own]
        for language, own in zip(profile.languages, chosen, strict=True)
    }
    tokens = dict(zip(profile.languages, profile.tokens.tolist(), strict=True))
    facts = {"profiled_languages": profile.languages, "tokens": tokens, "selection": selection}
    return NeuronSets(sets, chosen.shape[2], {**profile.metadata, **facts, **parameters})


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Returns a mask of the `count` highest scores along the last axis; of equal ones, the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _quantile(values: torch.Tensor, rate: float) -> torch.Tensor:
    # The k-th smallest value, as in the reference, not an interpolated quantile.
    return values.flatten().kthvalue(max(1, round(values.numel() * rate))).values


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise InvalidInput(f"{name} is a share above 0 and at most 1, got {share}.")


def _check_languages(profile: ActivationProfile) -> None:
    if len(profile.languages) < 2:
        raise InvalidInput(f"A selection compares languages; here is only {profile.languages}. Profile two or more.")
