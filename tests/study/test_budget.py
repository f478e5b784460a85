"""LAPE filled to a budget takes each language's lowest in entropy, among the neurons that it activates."""

import torch

from ssetools import ActivationProfile, lape_entropy
from study.budget import select_budget


def test_a_budget_takes_each_languages_own_lowest():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5_000, 9_000, (4,), generator=generator)
    shares = torch.rand(4, 3, 40, generator=generator, dtype=torch.float64) ** 4
    profile = ActivationProfile((shares * tokens[:, None, None]).long(), tokens, ["mt", "af", "is", "cy"])
    sets = select_budget(profile, 7, activation_bar=0.8)
    entropy, probabilities = lape_entropy(profile), profile.probabilities()
    bar = probabilities.flatten().sort().values[round(probabilities.numel() * 0.8) - 1]
    for k, code in enumerate(profile.languages):
        assert sets.count(code) == 7
        mine, active = sets.mask(code), probabilities[k] > bar
        assert active[mine].all()
        assert entropy[mine].max() <= entropy[active & ~mine].min()
    everything = select_budget(profile, 10_000, activation_bar=0.8)
    assert everything.count("mt") == int((probabilities[0] > bar).sum()), "fewer where fewer are active"
