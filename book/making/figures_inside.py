"""The figures of the page on how languages differ inside a model."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making.results import PAGE_WIDTH, name_of, read
from making.rows import legend_above, set_rows
from ssetools import plots
from ssetools.languages import CONTRAST_LANGUAGES
from ssetools.plots import ACCENT, AFTER, BEFORE, RULE


def same_text() -> Figure | None:
    """Tokens and bits for one text in many languages, relative to English."""
    found = read("inside.json")
    if found is None:
        return None
    costs = relative(found)
    order = sorted(costs, key=lambda code: costs[code]["bits"])
    plots.style()
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 0.27 * len(order) + 1.4), layout="constrained")
    for row, code in enumerate(order):
        ends = [costs[code]["tokens"], costs[code]["bits"]]
        axes.plot(ends, [row, row], color=BEFORE, linewidth=1.2, zorder=1)
        axes.plot(ends[0], row, "s", color=ACCENT, ms=6, label="tokens")
        axes.plot(ends[1], row, "o", color=AFTER, ms=7, label="bits that the model needs")
    set_rows(axes, [name_of(code) for code in order], "times as many as for English", mark=1)
    for label, code in zip(axes.get_yticklabels(), order, strict=True):
        label.set(fontsize=10, fontweight="bold" if code in CONTRAST_LANGUAGES else "normal")
    legend_above(figure)
    return figure


def relative(found: dict) -> dict[str, dict[str, float]]:
    """Returns tokens and bits of the same text by language, as multiples of English."""
    texts = found["same_text"]
    return {code: {key: one[key] / texts["en"][key] for key in ("tokens", "bits")} for code, one in texts.items()}


def same_text_in_words() -> str:
    """Says what the figure shows."""
    costs = relative(read("inside.json"))
    said = [f"{name_of(code)} {one['tokens']:.1f} and {one['bits']:.1f}" for code, one in costs.items()]
    return f"Tokens and bits for the same text, as multiples of English: {'; '.join(said)}."


def layers() -> Figure | None:
    """Among how many languages a neuron's firing is spread, by layer."""
    found = read("inside.json")
    if found is None:
        return None
    plots.style()
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 3.4), layout="constrained")
    places = [row["layer"] for row in found["layers"]]
    lowest, low, middle, high, highest = zip(*(row["quantiles"] for row in found["layers"]), strict=True)
    axes.fill_between(places, lowest, highest, color=AFTER, alpha=0.28, linewidth=0, label="90% of the neurons")
    axes.fill_between(places, low, high, color=AFTER, alpha=0.5, linewidth=0, label="the middle half")
    axes.plot(places, middle, color=AFTER, linewidth=2, label="median")
    axes.axhline(len(found["same_text"]), color=RULE, linestyle=":", linewidth=1.2)
    axes.set(xlabel="layer", ylabel="languages", ylim=(min(lowest) - 2, len(found["same_text"]) + 0.8))
    axes.set_xticks(places[:: max(1, len(places) // 9)])
    axes.legend(frameon=False, loc="lower left", fontsize=10)
    return figure


def layers_in_words() -> str:
    """Says what the figure shows."""
    rows = read("inside.json")["layers"]
    ends = [f"{row['quantiles'][0]:.1f} in layer {row['layer']}" for row in (rows[0], rows[len(rows) // 2], rows[-1])]
    return (
        "Bands by layer of the number of languages among which a neuron's firing is spread. The lowest twentieth of the "
        f"neurons lies below {', '.join(ends)}."
    )


INSIDE = {"same-text": (same_text, same_text_in_words), "layers": (layers, layers_in_words)}
"""Drawing and alternative text by name."""
