"""Tables of the front page and of the pages on choosing a method: gain, cost, amounts of text, predicted memory and time."""

from __future__ import annotations

import math
import statistics

from making.compared import METHOD_TITLES, as_change, benchmark, summary
from making.results import join_words, metrics_by_language, read, table_cell, with_interval
from ssetools.training.methods import METHODS

DEFAULT_TOKENS = 16_384
"""Default number of training tokens in the comparison."""

_GAIN, _HARM = "target, sentences", "others, sentences"
_AMOUNTS, _NEAR = (2_000, 20_000, 200_000, 2_000_000), 2.1
"""Training tokens that a reader may have, and the factor within which a measured amount is near one of them."""
_TOKENS = 2_000_000
_SPEED = 65e12 / 4
"""Assumed operations per second: a quarter of the float16 rate in the data sheet of a T4."""
_NO_COMPARISON = "```{note}\nNo results yet: `make compare` runs the comparison.\n```\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    comparison = summary()
    return {
        "front-findings": findings(comparison) if comparison else "",
        "which-costs": costs(comparison) if comparison else _NO_COMPARISON,
        "which-amounts": amounts(comparison) if comparison else _NO_COMPARISON,
        "your-amounts": nearest_amounts(comparison),
        "bigger-predicted": predicted(),
        "bigger-measured": measured_runs(),
    }


def findings(comparison: dict) -> str:
    """States which methods the language's neurons are better or worse than, on average over languages."""
    languages = comparison["over_languages"]["lape"][_GAIN]["units"]
    gain = with_interval(as_change(comparison["over_languages"]["lape"][_GAIN]))
    lines = [
        f"- **Gain**: on average over {languages} languages, training the language's neurons changes the perplexity of the "
        f"unseen genre by {gain}. {_verdicts(comparison, _GAIN, 'This is', 'better', 'worse')}",
        f"- **Other languages**: {_verdicts(comparison, _HARM, 'it is', 'better', 'worse')}",
        f"- **Drift** from the base: {_verdicts(comparison, 'drift', 'it is', 'smaller', 'larger')}",
    ]
    return "\n".join(lines) + "\n"


def _verdicts(comparison: dict, measure: str, start: str, better: str, worse: str) -> str:
    """Lists the methods by whether the interval of their difference from `lape` is above zero, below, or includes it."""
    rivals: dict[str, list[str]] = {better: [], worse: [], "": []}
    for name, cells in comparison["over_languages_minus_lape"].items():
        low, high = cells[measure]["low"], cells[measure]["high"]
        if low is not None:
            rivals[better if low > 0 else worse if high < 0 else ""].append(METHOD_TITLES[name])
    parts = [f"{word} than with {join_words(rivals[word])}" for word in (better, worse) if rivals[word]]
    if not parts:
        return "every difference is inconclusive."
    unclear = f"; the difference from {join_words(rivals[''])} is inconclusive" if rivals[""] else ""
    return f"{start} {', and '.join(parts)}{unclear}."


def costs(comparison: dict) -> str:
    """Tabulates the methods on the embedded model: trained weights, base, memory and time of a step, size of the file."""
    lines = ["| method | trains | base | peak memory | a step | file |", "|:--|:--|:--|--:|--:|--:|"]
    steps = benchmark()
    methods_by_language = [x["methods"] for x in comparison["languages"].values()]
    for name, title in METHOD_TITLES.items():
        files = [methods[name]["adapter_bytes"] for methods in methods_by_language if name in methods]
        size = f"{sum(files) / len(files) / 1e6:.1f} MB" if files else "no results yet"
        step = steps.get(name)
        cells = [f"{step['peak_gib']:.1f} GiB", f"{step['seconds']:.1f} s"] if step else ["no results yet"] * 2
        base = "8-bit" if METHODS[name].on_8bit else "16-bit"
        lines.append(f"| `{name}` | {title} | {base} | {' | '.join(cells)} | {size} |")
    return "\n".join(lines) + "\n"


def amounts(comparison: dict) -> str:
    """Tabulates the gain by amount of training text, for the languages in which it was varied."""
    lines = ["| training text | language | the language's neurons | random neurons |", "|--:|:--|--:|--:|"]
    for of_language in comparison["languages"].values():
        rows = {DEFAULT_TOKENS: {name: of_language["methods"][name]["changes"][_GAIN] for name in ("lape", "random")}}
        for run in of_language["ablations"]:
            if run["max_tokens"] != DEFAULT_TOKENS:
                rows.setdefault(run["max_tokens"], {})[run["method"]] = run["changes"][_GAIN]
        for tokens, cells in sorted(rows.items()) if len(rows) > 1 else ():
            changes = " | ".join(table_cell(as_change(cells[x])) if x in cells else "" for x in ("lape", "random"))
            lines.append(f"| {tokens:,} tokens | {of_language['name']} | {changes} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No results yet.\n"


def nearest_amounts(comparison: dict | None) -> str:
    """Tabulates for each amount of text of a reader the gain at the nearest measured amount, or that none is near."""
    measured: dict[int, list[str]] = {}
    for of_language in (comparison or {"languages": {}})["languages"].values():
        runs = [x for x in of_language["ablations"] if x["method"] == "lape" and x["max_tokens"] != DEFAULT_TOKENS]
        gains = {run["max_tokens"]: run["changes"][_GAIN] for run in runs}
        gains |= {DEFAULT_TOKENS: of_language["methods"]["lape"]["changes"][_GAIN]} if gains else {}
        for tokens, gain in gains.items():
            measured.setdefault(tokens, []).append(f"{of_language['name']} {with_interval(as_change(gain))}")
    lines = ["| you have | perplexity on the unseen genre |", "|--:|:--|"]
    for amount in _AMOUNTS:
        near = [tokens for tokens in measured if max(tokens / amount, amount / tokens) < _NEAR]
        tokens = min(near, key=lambda x: abs(math.log(x / amount)), default=None)
        cell = f"{join_words(measured[tokens])}, with {tokens:,} tokens" if tokens else "not measured"
        lines.append(f"| {amount:,} tokens | {cell} |")
    return "\n".join(lines) + "\n"


def predicted() -> str:
    """Tabulates the predicted memory, and the hours for two million tokens at the assumed speed."""
    plan = read("benchmarks/plan.json")
    if plan is None:
        return "```{note}\nNo results yet: `make bench` makes the predictions.\n```\n"
    lines = [f"| model | neurons | peak memory | on 16 GB | hours at {_SPEED / 1e12:.0f} TFLOP/s |"]
    lines.append("|:--|--:|--:|:--|--:|")
    for row in plan["planned"]:
        if row["bits"] == 8 and row["recomputed"]:
            name, fits = row["model"].split("/")[-1], "fits" if row["fits"] else "too large"
            hours = _TOKENS * row["operations_per_token"] / _SPEED / 3600
            lines.append(f"| {name} | {row['neurons']:,} | {row['peak_gb']:.1f} GB | {fits} | {hours:.1f} |")
    return "\n".join(lines) + "\n"


def measured_runs() -> str:
    """Tabulates the measured time and memory of the default runs of the embedded model."""
    runs = [metrics["adapter"] for metrics in metrics_by_language().values()]
    if not runs:
        return "No results yet.\n"
    minutes, speeds = [run["seconds"] / 60 for run in runs], [run["tokens"] / run["seconds"] for run in runs]
    peak = max(run["peak_memory_gib"] for run in runs)
    return (
        "| model | languages | tokens | minutes, median (range) | tokens a second, median (range) | peak memory |\n|:--|--:|--:|--:|--:|--:|\n"
        f"| gemma-3-270m, two CPU cores | {len(runs)} | {max(run['tokens'] for run in runs):,} | "
        f"{_range(minutes, 1)} | {_range(speeds, 0)} | {peak:.1f} GiB |\n"
    )


def _range(values: list[float], digits: int) -> str:
    middle, *ends = (f"{x:.{digits}f}" for x in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({' to '.join(ends)})"
