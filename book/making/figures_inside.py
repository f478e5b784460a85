"""Figures on how languages differ inside a model."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making.results import PAGE_WIDTH, language_name, read
from making.rows import legend_above, set_rows
from ssetools import plots
from ssetools.languages import CONTRAST_LANGUAGES
from ssetools.plots import ACCENT, AFTER, BEFORE, RULE


def same_text() -> Figure | None:
    """Draws the tokens and bits of the same text in many languages, relative to English."""
    results = read("inside.json")
    if results is None:
        return None
    ratios = relative_to_english(results)
    order = sorted(ratios, key=lambda code: ratios[code]["bits"])
    plots.style()
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 0.27 * len(order) + 1.4), layout="constrained")
    for row, code in enumerate(order):
        tokens, bits = ratios[code]["tokens"], ratios[code]["bits"]
        axes.plot([tokens, bits], [row, row], color=BEFORE, linewidth=1.2, zorder=1)
        axes.plot(tokens, row, "s", color=ACCENT, ms=6, label="tokens")
        axes.plot(bits, row, "o", color=AFTER, ms=7, label="bits that the model needs")
    set_rows(axes, [language_name(code) for code in order], "times as many as for English", reference=1)
    for label, code in zip(axes.get_yticklabels(), order, strict=True):
        label.set(fontsize=10, fontweight="bold" if code in CONTRAST_LANGUAGES else "normal")
    legend_above(figure)
    return figure


def relative_to_english(results: dict) -> dict[str, dict[str, float]]:
    """Returns tokens and bits of the same text by language, as multiples of English."""
    texts = results["same_text"]
    return {code: {key: x[key] / texts["en"][key] for key in ("tokens", "bits")} for code, x in texts.items()}


def same_text_alt_text() -> str:
    """Returns the text alternative of the figure."""
    ratios = relative_to_english(read("inside.json"))
    parts = [f"{language_name(code)} {x['tokens']:.1f} and {x['bits']:.1f}" for code, x in ratios.items()]
    return f"Tokens and bits of the same text, as multiples of English: {'; '.join(parts)}."


def layers() -> Figure | None:
    """Draws the effective number of languages for which neurons fire, by layer."""
    results = read("inside.json")
    if results is None:
        return None
    plots.style()
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 3.4), layout="constrained")
    numbers = [row["layer"] for row in results["layers"]]
    lowest, low, median, high, highest = zip(*(row["quantiles"] for row in results["layers"]), strict=True)
    axes.fill_between(numbers, lowest, highest, color=AFTER, alpha=0.28, linewidth=0, label="90% of the neurons")
    axes.fill_between(numbers, low, high, color=AFTER, alpha=0.5, linewidth=0, label="the middle half")
    axes.plot(numbers, median, color=AFTER, linewidth=2, label="median")
    axes.axhline(len(results["same_text"]), color=RULE, linestyle=":", linewidth=1.2)
    axes.set(xlabel="layer", ylabel="languages", ylim=(min(lowest) - 2, len(results["same_text"]) + 0.8))
    axes.set_xticks(numbers[:: max(1, len(numbers) // 9)])
    axes.legend(frameon=False, loc="lower left", fontsize=10)
    return figure


def layers_alt_text() -> str:
    """Returns the text alternative of the figure."""
    rows = read("inside.json")["layers"]
    parts = [f"{row['quantiles'][0]:.1f} in layer {row['layer']}" for row in (rows[0], rows[len(rows) // 2], rows[-1])]
    return (
        "Bands of the effective number of languages for which neurons fire, by layer. For the lowest twentieth of the neurons "
        f"it is below {', '.join(parts)}."
    )


INSIDE = {"same-text": (same_text, same_text_alt_text), "layers": (layers, layers_alt_text)}
"""The functions that return the figure and its text alternative, by name."""
