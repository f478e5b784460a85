"""Every figure draws on made-up numbers, with its labels, and closes."""

import matplotlib
import numpy
import pandas
import pytest
import torch

from ssetools import ActivationProfile, plots, select_neurons
from ssetools.steps import summarise

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
    few = ActivationProfile(profile.counts[:, :1, :3], profile.tokens, LANGS)
    assert [axes.get_title(loc="left").split("\n")[0] for axes in plots.firing(few).axes] == [
        f"neuron {i}" for i in range(3)
    ]
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


def _seen(colour, matrix):
    """Lab coordinates of a colour as one sees it whose cones mix colours by `matrix` (Machado et al., linear RGB)."""
    rgb = numpy.array(matplotlib.colors.to_rgb(colour))
    linear = numpy.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = numpy.cbrt(to_xyz @ numpy.clip(numpy.array(matrix) @ linear, 1e-9, 1) / [0.9505, 1, 1.089])
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_series_are_told_apart_by_the_colour_blind_and_on_both_grounds():
    protan = [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    deutan = [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    tritan = [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]
    for matrix in (numpy.eye(3), protan, deutan, tritan):
        seen = [_seen(colour, matrix) for colour in plots.PALETTE]
        apart = [numpy.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 12
    light = {
        name: ((_seen(name, numpy.eye(3))[0] + 16) / 116) ** 3 for name in (*plots.PALETTE, plots.BEFORE, plots.RULE)
    }
    for colour, luminance in light.items():
        assert 1.05 / (luminance + 0.05) >= 3, f"{colour} is too pale for a light page"
        assert (luminance + 0.05) / 0.0586 >= 3, f"{colour} is too dark for a dark page"


def test_figures_for_dark_pages(metrics):
    light = plots.before_after(metrics, "yo").get_facecolor()
    with plots.theme("dark"):
        dark = plots.before_after(metrics, "yo")
    assert sum(dark.get_facecolor()[:3]) < 0.5 < sum(light[:3])
    assert sum(matplotlib.colors.to_rgb(dark.axes[0].get_ylabel() and dark.axes[0].yaxis.label.get_color())) > 2
    assert plots.before_after(metrics, "yo").get_facecolor() == light
    with pytest.raises(ValueError, match="Unknown theme"), plots.theme("blue"):
        pass
