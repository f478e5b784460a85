"""Figures draw the numbers they are given, with their labels, in colours that everybody can distinguish."""

import math

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
        perplexity = math.exp(sum(losses) / 30 / windows)
        return {"perplexity": perplexity, "window_losses": losses, "window_tokens": [30] * windows}

    before = {kind: {x: scores(1.0, 1 if x == "ka" else 5) for x in LANGS} for kind in ("messages", "sentences")}
    after = {kind: {x: scores(0.9, 1 if x == "ka" else 5) for x in LANGS} for kind in before}
    return {"before": before, "after": after, "same_kind": ["messages"], "summary": summarise(before, after, "yo")}


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


def heights(axes):
    """Heights of the bars, and of the steps of a filled histogram."""
    return [bar.get_height() for bar in axes.patches]


def cells(axes):
    """The numbers of a heat map."""
    return numpy.ma.getdata(axes.collections[0].get_array())


def labels(axes, which):
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_probabilities_are_drawn_by_layer(profile):
    axes = plots.activation_probabilities(profile, ["yo", "en"])
    probabilities = profile.probabilities()
    for line, row in zip(axes.lines, (0, 2), strict=True):
        numpy.testing.assert_allclose(line.get_ydata(), probabilities[row].median(1).values, rtol=1e-6)
    assert legend(axes) == ["Yoruba", "English", "Yoruba, middle half"]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(probabilities[0].quantile(0.75, 1).max().item(), rel=1e-6)


def test_a_heat_map_of_languages_has_their_names_and_numbers(profile):
    axes = plots.probability_similarity(profile)
    numpy.testing.assert_allclose(cells(axes), numpy.corrcoef(profile.probabilities().flatten(1).numpy()))
    assert labels(axes, "x") == labels(axes, "y") == ["Yoruba", "Icelandic", "English", "Georgian"]
    neurons = select_neurons(profile, 0.2)
    drawn, expected = cells(plots.overlap(neurons)), neurons.overlap().to_numpy()
    numpy.testing.assert_allclose(drawn[~numpy.eye(4, dtype=bool)], expected[~numpy.eye(4, dtype=bool)])


def test_every_neuron_is_in_the_histogram_and_every_set_in_its_layer(profile):
    neurons = select_neurons(profile, 0.2)
    axes = plots.entropy_histogram(profile, neurons)
    selected = torch.stack([neurons.mask(code) for code in LANGS]).any(0).sum().item()
    assert (sum(heights(axes)[:59]), sum(heights(axes)[59:])) == (6 * 200, selected)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(numpy.log(4))
    axes = plots.neurons_per_layer(neurons)
    assert cells(axes).tolist() == [[len(ids) for ids in neurons[code]] for code in LANGS]
    assert labels(axes, "y")[0] == f"Yoruba  {neurons.count('yo')}"


def test_the_deactivation_figure_compares_within_columns():
    changes = pandas.DataFrame([[2.0, 0.1], [1.0, 0.4], [-1.0, 0.2]], ["yo", "is", "random"], ["yo", "is"])
    axes = plots.deactivation_matrix(changes)
    numpy.testing.assert_allclose(cells(axes), [[1, 0.25], [0.5, 1], [0, 0.5]])
    assert [text.get_text() for text in axes.texts] == ["2.00", "0.10", "1.00", "0.40", "-1.00", "0.20"]
    assert labels(axes, "y") == ["Yoruba", "Icelandic", "random control"]


def test_losses_are_drawn_where_they_were_measured():
    nan = float("nan")
    log = {"tokens": [1, 2, 3], "loss": [3.0, 2.5, 2.0], "validation_loss": [nan, 2.6, nan]}
    axes = plots.loss_curve(pandas.DataFrame(log))
    batch, smooth, validation = axes.lines
    assert batch.get_ydata().tolist() == log["loss"]
    assert smooth.get_ydata()[-1] > 2.0
    assert (validation.get_xdata().tolist(), validation.get_ydata().tolist()) == ([2], [2.6])
    log["tokens_per_second"] = [1, 0.5, 0.25]
    tokens, seconds = plots.dynamics({run: pandas.DataFrame(log) for run in ("lape-seed0", "lora")}).axes
    assert [line.get_xdata().tolist() for line in seconds.lines] == [[1, 3, 7], [3]] * 2
    assert tokens.lines[3].get_ydata().tolist() == [2.6]
    assert legend(seconds) == ["lape-seed0", "lora"]


def test_bars_before_and_after_have_the_change_and_its_interval(metrics):
    seen, unseen = plots.before_after(metrics, "yo").axes
    assert seen.get_title(loc="left") == "messages\nseen genre"
    assert unseen.get_title(loc="left") == "sentences\nunseen genre"
    old, new = (metrics[when]["messages"]["yo"]["perplexity"] for when in ("before", "after"))
    assert heights(seen) == pytest.approx([old, new] * 2)
    assert labels(seen, "x") == ["Yoruba", "English"]
    moved = metrics["summary"]["messages"]["target"]
    assert [text.get_text() for text in seen.texts] == [f"{moved['percent']:.0f}%"] * 2
    ends = seen.containers[-1].lines[2][0].get_segments()[0][:, 1]
    assert ends == pytest.approx([old * (1 + moved[end] / 100) for end in ("low", "high")])
    for axes in plots.before_after(metrics, "en").axes:
        assert labels(axes, "x") == ["English"]


def test_retention_has_a_dot_and_an_interval_for_every_language_and_genre(metrics):
    metrics["summary"]["sentences"]["others"]["is"]["percent"] = -90.0
    axes = plots.retention(metrics, "yo")
    assert labels(axes, "y")[0] == "Icelandic"
    assert sorted(labels(axes, "y")) == ["English", "Georgian", "Icelandic", "Yoruba"]
    order = {"yo": "Yoruba", "is": "Icelandic", "en": "English", "ka": "Georgian"}
    for line, intervals, kind in zip(axes.lines, axes.collections, ("messages", "sentences"), strict=False):
        summary = metrics["summary"][kind]
        changes = {"yo": summary["target"], **summary["others"]}
        for (code, change), x, y in zip(changes.items(), line.get_xdata(), line.get_ydata(), strict=True):
            assert x == change["percent"]
            assert labels(axes, "y")[round(y)] == order[code]
        drawn = [segment[:, 0].tolist() for segment in intervals.get_segments() if segment.size]
        known = [[change["low"], change["high"]] for change in changes.values() if change["low"] is not None]
        assert drawn == known, "one window of Georgian has no interval"


def test_figures_of_the_inside_draw_their_tables():
    rows = [
        {"layer": layer, "measure": measure, "mean": mean + layer / 10, "low": mean, "high": mean + 0.3}
        for measure, mean in (("matched", 0.7), ("shuffled", 0.5), ("margin", 0.2), ("retrieved", 0.4))
        for layer in range(3)
    ]
    base = pandas.DataFrame(rows)
    tuned = base.assign(mean=base["mean"] + 0.05)
    left, middle, right = plots.alignment_by_layer(base, tuned, pairs=9).axes
    numpy.testing.assert_allclose(middle.lines[1].get_ydata(), [0.25, 0.35, 0.45])
    numpy.testing.assert_allclose(right.lines[0].get_ydata(), [0.4, 0.5, 0.6])
    assert right.lines[2].get_ydata() == [1 / 9, 1 / 9], "chance"
    assert legend(left) == ["translation, base", "wrong passage, base", "translation, tuned", "wrong passage, tuned"]
    changes = pandas.DataFrame(
        {"layer": [0, 0, 1, 1], "projection": ["up", "gate"] * 2, "relative": [0.01, 0.02, 0.03, 0.04]}
    )
    axes = plots.change_by_layer(changes)
    assert labels(axes, "y") == ["gate", "up"]
    numpy.testing.assert_allclose(cells(axes), [[2, 4], [1, 3]])


def _seen(colour, matrix):
    """Lab coordinates of a colour as one sees it whose cones mix colours by `matrix` (Machado et al., linear RGB)."""
    rgb = numpy.array(matplotlib.colors.to_rgb(colour))
    linear = numpy.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = numpy.cbrt(to_xyz @ numpy.clip(numpy.array(matrix) @ linear, 1e-9, 1) / [0.9505, 1, 1.089])
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_colour_blind_can_distinguish_series_on_light_and_dark_pages():
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
