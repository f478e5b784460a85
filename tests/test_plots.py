"""Every figure draws on made-up numbers, with its labels, and closes."""

import matplotlib
import numpy
import pandas
import pytest
import torch

from ssetools import ActivationProfile, plots, select_neurons
from ssetools.measuring import summarise

matplotlib.use("Agg")
LANGS = ["yo", "is", "en", "ka"]


@pytest.fixture
def profile():
    shares = torch.rand(4, 6, 200, generator=torch.Generator().manual_seed(0)) ** 3
    return ActivationProfile((shares * 1000).long(), torch.tensor([1000] * 4), LANGS)


@pytest.fixture
def metrics():
    def scores(scale, windows):
        losses = [scale * (90 + i) for i in range(windows)]
        return {"perplexity": 9.0 * scale, "window_losses": losses, "window_tokens": [30] * windows}

    before = {kind: {x: scores(1.0, 1 if x == "ka" else 5) for x in LANGS} for kind in ("messages", "sentences")}
    after = {kind: {x: scores(0.9, 1 if x == "ka" else 5) for x in LANGS} for kind in before}
    return {"before": before, "after": after, "same_kind": ["messages"], "summary": summarise(before, after, "yo")}


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


def test_profile_and_selection_figures(profile):
    neurons = select_neurons(profile, 0.2)
    assert len(plots.activation_probabilities(profile, ["yo", "en"]).lines) == 2
    assert plots.probability_similarity(profile).get_xticklabels()[0].get_text() == "Yoruba"
    assert plots.entropy_histogram(profile, neurons).get_yscale() == "log"
    assert len(plots.neurons_per_layer(neurons).get_yticklabels()) == 4
    assert plots.overlap(neurons).get_title(loc="left")
    assert plots.entropy_against_ratio([0, 1], [0.1, 3.0]).get_ylabel() == "LAPE (nats)"


def test_deactivation_figure():
    changes = pandas.DataFrame(numpy.eye(5, 4), [*LANGS, "random"], LANGS)
    labels = [label.get_text() for label in plots.deactivation_matrix(changes).get_yticklabels()]
    assert labels == ["Yoruba", "Icelandic", "English", "Georgian", "random control"]


def test_training_and_evaluation_figures(metrics):
    log = pandas.DataFrame(
        {"tokens": [1, 2, 3], "loss": [3.0, 2.5, 2.0], "validation_loss": [float("nan"), 2.6, float("nan")]}
    )
    assert len(plots.loss_curve(log).lines) == 3
    figure = plots.before_after(metrics, "yo")
    assert [axes.get_title(loc="left").split("\n")[1] for axes in figure.axes] == [
        "like the training text",
        "another kind of text",
    ]
    axes = plots.retention(metrics, "yo")
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == [
        "English",
        "Georgian",
        "Icelandic",
        "Yoruba",
    ]
    for axes in plots.before_after(metrics, "en").axes:
        assert len(axes.get_xticks()) == 1
