"""Language Activation Probability Entropy (LAPE): which neurons belong to which language.

Method of Tang et al. 2024 (arXiv 2402.16438) with the settings of arXiv 2510.13580.
"""

from __future__ import annotations

import torch

from ssetools.errors import InvalidInput
from ssetools.neurons.counts import ActivationProfile
from ssetools.neurons.sets import NeuronSets


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
    if len(profile.languages) < 2:
        raise InvalidInput(f"LAPE compares languages; this profile has only {profile.languages}. Profile two or more.")
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
    rates = {"top_rate": top_rate, "filter_rate": filter_rate, "activation_bar": activation_bar}
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
    rates = {"neurons_per_language": neurons_per_language, "activation_bar": activation_bar}
    metadata = {**profile.metadata, "profiled_languages": profile.languages, **rates}
    return NeuronSets(layers, num_neurons=entropy.shape[1], metadata=metadata)


def _quantile(values: torch.Tensor, rate: float) -> torch.Tensor:
    # The k-th smallest value, as in the reference, not an interpolated quantile.
    return values.kthvalue(max(1, round(values.numel() * rate))).values


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 < rate <= 1:
            raise InvalidInput(f"{name} is a share above 0 and at most 1, got {rate}.")
