"""Tables, sentences and the figure of the comparison at equal harm, from the summary of the study."""

from __future__ import annotations

import csv

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from making.results import BOOK, MODEL, PAGE_WIDTH, join_words, language_name, read, signed, table_cell
from ssetools import plots
from ssetools.languages import TARGET_LANGUAGES
from ssetools.plots import PALETTE, RULE
from study.harm.recipes import SEARCHED, TOKENS

TITLES = {
    "specific": "specific neurons (top 3)",
    "specific-mean": "specific neurons (mean)",
    "lape": "LAPE neurons",
    "random": "random neurons",
    "lora": "LoRA of rank 18",
    "lora-32": "LoRA of rank 32",
    "ia3": "IA3",
    "ffn": "all FFN weights",
    "full": "all weights",
}
LIMIT_TITLES = {
    "drift 0.02": "drift ≤ 0.02",
    "drift 0.03": "drift ≤ 0.03",
    "neighbours": "neighbours' mean ≤ 0",
    "general": "general limit only",
}
STYLES = {
    name: (PALETTE[i % len(PALETTE)], marker, line)
    for i, (name, marker, line) in enumerate(
        zip(
            ("lape", "full", "specific", "lora", "ffn", "random", "ia3", "specific-mean", "lora-32"),
            "o*s^PvXDd",
            ("-", "-", "-", "-", "-", "--", "-", "-", ":"),
            strict=True,
        )
    )
}
_SHOWN_DRIFT = 0.06
_NO_RESULTS = "```{note}\nNo results yet: `make equal-harm` runs the comparison.\n```\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    found = summary()
    if found is None:
        empty = ("harm-default", "harm-findings", "harm-scope", "harm-neighbours", "harm-differences", "harm-summary")
        missing = {"harm-means": _NO_RESULTS, "harm-languages": _NO_RESULTS, **dict.fromkeys(empty, "")}
        return missing | {"harm-corpora": corpora_table()}
    return {
        "harm-corpora": corpora_table(),
        "harm-means": means_table(found),
        "harm-differences": differences_table(found),
        "harm-findings": findings(found),
        "harm-summary": describe() + "\n",
        "harm-default": default_rule(found),
        "harm-scope": scope(found),
        "harm-languages": "\n".join(language_table(lang, x) for lang, x in found["by_language"].items()),
        "harm-neighbours": neighbours_table(found),
    }


def summary() -> dict | None:
    """Returns the summary of the study; None without one, or if no language has all methods."""
    found = read(f"harm/{MODEL}/summary.json")
    return found if found and found["languages"] else None


def means_table(found: dict) -> str:
    """Tabulates the mean gain under each limit, in descending order of gain at a drift of at most 0.03."""
    lines = [f"| trained | weights | {' | '.join(LIMIT_TITLES.values())} |", "|:--|--:|" + "--:|" * len(LIMIT_TITLES)]
    for name in _by_gain(found, "drift 0.03"):
        recipe = found["recipes"][name]
        cells = [signed(recipe["means"][limit]["gain"]["mean"], 1) for limit in LIMIT_TITLES]
        lines.append(f"| {TITLES[name]} | {_share(recipe['share'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences_table(found: dict) -> str:
    """Tabulates the gain of the leading method minus that of every other, under each limit."""
    first, *others = _by_gain(found, "drift 0.03")
    lines = [f"| {TITLES[first]} minus | {' | '.join(LIMIT_TITLES.values())} |", "|:--|" + "--:|" * len(LIMIT_TITLES)]
    for other in others:
        cells = [table_cell(found["differences"][first][other][limit], unit="") for limit in LIMIT_TITLES]
        lines.append(f"| {TITLES[other]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def neighbours_table(found: dict) -> str:
    """Tabulates both kinds of harm at a drift of at most 0.03."""
    lines = ["| trained | scale | drift | English | well-served | other under-served | worst one |"]
    lines.append("|:--|--:|--:|--:|--:|--:|:--|")
    for name in _by_gain(found, "drift 0.03"):
        means = found["recipes"][name]["means"]["drift 0.03"]
        worst = max(
            ((of[name]["drift 0.03"], lang) for lang, of in found["by_language"].items() if lang in found["languages"]),
            key=lambda x: x[0]["worst_change"],
        )
        cells = [f"{means['scale']['mean']:.2f}", f"{means['drift']['mean']:.3f}"]
        cells += [signed(means[x]["mean"], 2) + "%" for x in ("english", "served", "neighbours")]
        affected = language_name(worst[0]["worst"]) if worst[0]["worst"] else "none"
        cells.append(f"{affected} {signed(worst[0]['worst_change'], 1)}%, by {language_name(worst[1])}")
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def language_table(lang: str, recipes: dict) -> str:
    """Tabulates one language: gain under each limit by method, and the gain on each genre at a drift of at most 0.03."""
    heads = [*LIMIT_TITLES.values(), "SIB-200", "NTREX", "training genre"]
    lines = [f"::::{{dropdown}} {language_name(lang)}", "", f"| trained | {' | '.join(heads)} |"]
    lines.append("|:--|" + "--:|" * len(heads))
    for name in sorted(recipes, key=list(TITLES).index):
        cells = [signed(recipes[name][limit]["gain"], 1) for limit in LIMIT_TITLES]
        cells += [signed(recipes[name]["drift 0.03"][genre], 1) for genre in ("sib200", "ntrex", "same genre")]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "The last three columns are at a drift of at most 0.03.", "::::"]) + "\n"


def corpora_table() -> str:
    """Lists the training text: words, kind, licence, and the public repository and commit that it comes from."""
    lines = ["| language | words | kind | licence | repository, commit |", "|:--|--:|:--|:--|:--|"]
    with open(BOOK.parent / "study" / "harm" / "corpora.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cells = [language_name(row["language"]), f"{int(row['words']):,}", row["kind"], row["licence"]]
            lines.append(f"| {' | '.join(cells)} | {row['repository']} {row['commit']} |")
    return "\n".join(lines) + "\n"


def scope(found: dict) -> str:
    """States which languages, methods and seeds the numbers are from, and what is missing."""
    languages = found["languages"]
    missing = [language_name(x) for x in TARGET_LANGUAGES if x not in languages]
    seeds = max(len(recipe["seeds"]) for recipe in found["recipes"].values())
    sentence = (
        f"Means over {len(languages)} of {len(TARGET_LANGUAGES)} languages ({join_words([language_name(x) for x in languages])}), "
        f"{'one seed' if seeds == 1 else f'up to {seeds} seeds'}."
    )
    without = [TITLES[name] for name in TITLES if name not in found["recipes"]]
    if without:
        sentence += f" Not measured in all of them yet: {join_words(without)}."
    if missing:
        sentence += f" Languages without results of every method yet: {join_words(missing)}."
    return sentence + "\n"


def findings(found: dict) -> str:
    """States for each limit the mean gains, and how the leading method differs from the others."""
    lines = []
    for limit, title in LIMIT_TITLES.items():
        first, *others = _by_gain(found, limit)
        gains = [
            f"{TITLES[x]} {signed(found['recipes'][x]['means'][limit]['gain']['mean'], 1)}" for x in (first, *others)
        ]
        unclear = [x for x in others if includes_zero(found["differences"][first][x][limit])]
        text = f"- **{title}**: {join_words(gains)}."
        if unclear:
            total = len(found["languages"])
            parts = [f"{TITLES[x]} (ahead in {_wins(found, first, x, limit)} of {total} languages)" for x in unclear]
            text += f" Inconclusive: the difference from {join_words(parts)}."
        lines.append(text)
    return "\n".join(lines) + "\n"


def _wins(found: dict, first: str, other: str, limit: str) -> int:
    """Returns in how many languages of the means the first method gains more."""
    cells = (found["by_language"][lang] for lang in found["languages"])
    return sum(cell[first][limit]["gain"] < cell[other][limit]["gain"] for cell in cells)


def includes_zero(value: dict) -> bool:
    """Returns whether a difference has no interval, or one that includes zero."""
    return value["low"] is None or value["low"] <= 0 <= value["high"]


def default_rule(found: dict) -> str:
    """States by which rule the default selection of neurons was chosen; empty before the searched languages have results."""
    winner = found.get("winner")
    if winner is None:
        return ""
    gains = [f"{TITLES[x]} {signed(gain, 1)}" for x, gain in winner["validation"].items()]
    searched = join_words([language_name(x) for x in SEARCHED if x in found["by_language"]])
    return (
        f"`make finetune` trains {TITLES[winner['recipe']]}: of the selections within 1% of the weights, the one with the largest mean "
        f"gain on validation text at a drift of at most 0.03 in the languages in which recipes are searched ({searched} so far): "
        f"{join_words(gains)}. Its scale is then chosen under the general limit.\n"
    )


def describe() -> str:
    """States the gain of every method at a drift of at most 0.03 in one sentence, for pages without tables."""
    found = summary()
    if found is None:
        return "The comparison at equal harm has no results yet."
    parts = []
    for name in _by_gain(found, "drift 0.03"):
        recipe, gain = found["recipes"][name], found["recipes"][name]["means"]["drift 0.03"]["gain"]
        parts.append(f"{TITLES[name]} {signed(gain['mean'], 1)} ({_share(recipe['share'])} of the weights)")
    languages = join_words([language_name(x) for x in found["languages"]])
    return (
        f"At equal harm (a drift from the base of at most 0.03 nats) on {TOKENS:,} tokens of running text, the loss on unseen genres "
        f"changes on average over {languages}, in nats per token × 100, by: {join_words(parts)}. {_unclear(found)}"
    )


def _unclear(found: dict) -> str:
    first, *others = _by_gain(found, "drift 0.03")
    unclear = [TITLES[x] for x in others if includes_zero(found["differences"][first][x]["drift 0.03"])]
    if not unclear:
        return f"The 95% intervals of the differences from {TITLES[first]} exclude zero."
    return f"The 95% intervals of the differences between {TITLES[first]} and {join_words(unclear)} include zero."


def figure() -> Figure | None:
    """Draws the mean gain on validation text under every limit of drift, a curve for each method."""
    found = summary()
    if found is None:
        return None
    plots.style()
    drawn, axes = plt.subplots(figsize=(PAGE_WIDTH, 4.6), layout="constrained")
    drifts = [0.0] + [x for x in found["drifts"] if x <= _SHOWN_DRIFT]
    for name in _by_gain(found, "drift 0.03"):
        colour, marker, line = STYLES[name]
        gains = [0.0, *found["recipes"][name]["curve"]][: len(drifts)]
        axes.plot(drifts, gains, line, marker=marker, color=colour, markersize=5, label=TITLES[name])
    axes.axvline(0.03, color=RULE, linewidth=1)
    axes.set_xlabel("drift from the base, at most (nats per token)")
    axes.set_ylabel("change of the loss (nats per token × 100)")
    axes.invert_yaxis()
    axes.set_title("Gain in the trained language; higher is better", fontsize=11)
    drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return drawn


def alt_text() -> str:
    """Returns the text alternative of the figure."""
    found = summary()
    parts = [
        f"{TITLES[name]} {signed(found['recipes'][name]['means']['drift 0.03']['gain']['mean'], 1)}"
        for name in _by_gain(found, "drift 0.03")
    ]
    return (
        "Curves of the mean change of the loss in the trained language by the drift that is allowed, one for each method. "
        f"On test text, at a drift of at most 0.03 nats: {'; '.join(parts)}."
    )


def _by_gain(found: dict, limit: str) -> list[str]:
    recipes = found["recipes"]
    return sorted(recipes, key=lambda name: recipes[name]["means"][limit]["gain"]["mean"])


def _share(percent: float) -> str:
    return "100%" if percent > 99 else f"{percent:.2g}%"
