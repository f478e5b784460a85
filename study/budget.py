"""The lowest in entropy up to a number of neurons: LAPE filled to a budget, with which LAPE is compared."""

from __future__ import annotations

import torch

from ssetools import ActivationProfile, NeuronSets, lape_entropy


def select_budget(profile: ActivationProfile, neurons_per_language: int, activation_bar: float = 0.90) -> NeuronSets:
    """Selects the same number of neurons for every language: the lowest in entropy among those that it activates.

    Args:
        profile: Activation counts of two or more languages.
        neurons_per_language: Neurons to take for each language, fewer where it activates fewer.
        activation_bar: Quantile of all probabilities above which a language activates a neuron.

    Returns:
        One set per language, in the profile's order.
    """
    probabilities = profile.probabilities()
    bar = probabilities.flatten().kthvalue(max(1, round(probabilities.numel() * activation_bar))).values
    entropy = lape_entropy(profile).expand_as(probabilities).masked_fill(probabilities <= bar, torch.inf)
    lowest = entropy.flatten(1).argsort(stable=True)[:, :neurons_per_language]
    chosen = torch.zeros(entropy.shape, dtype=torch.bool)
    chosen.flatten(1).scatter_(1, lowest, True)  # a view
    chosen &= entropy.isfinite()
    sets = {
        language: [layer.nonzero().flatten() for layer in own]
        for language, own in zip(profile.languages, chosen, strict=True)
    }
    facts = {"selection": "budget", "neurons_per_language": neurons_per_language, "activation_bar": activation_bar}
    return NeuronSets(sets, chosen.shape[2], {**profile.metadata, **facts})
