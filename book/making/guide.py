"""What the front page and the pages that help to choose say: methods on average, costs, amounts of text, hours."""

from __future__ import annotations

from making.compared import as_change, benchmark, summary
from making.results import join_words, metrics_by_language, read, table_cell, with_interval
from ssetools.training.methods import METHODS

MODEL_WEIGHTS = 268_098_176
"""Weights of the embedded model."""
DEFAULT_TOKENS = 16_384
"""Tokens on which a run of the comparison trains unless it says otherwise."""

NAMES = {
    "lape": "the language's neurons (LAPE)",
    "random": "random neurons of the same layers",
    "random-uniform": "random neurons of any layer",
    "lora": "LoRA of rank 32",
    "lora-equal": "LoRA of equal size",
    "ia3": "IA3",
    "ffn": "all FFN weights",
    "full": "all weights",
}
_GAIN, _HARM = "target, sentences", "others, sentences"
_TOKENS = 2_000_000
_SPEED = 65e12 / 4
"""Operations a second that hours are predicted with: a quarter of what a T4's data sheet gives for float16."""
_TODO = "```{note}\nNot measured yet: `make compare` measures it.\n```\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    found = summary()
    return {
        "front-methods": methods_on_average(found) if found else _TODO,
        "front-findings": findings(found) if found else "",
        "which-costs": costs(found) if found else _TODO,
        "which-amounts": amounts(found) if found else _TODO,
        "bigger-predicted": predicted(),
        "bigger-measured": measured_runs(),
    }


def methods_on_average(found: dict) -> str:
    """Writes a row a method, the largest gain first: gain, change of the other languages, drift, share of the weights."""
    over = found["over_languages"]
    lines = ["| trained | the language | other languages | drift | weights |", "|:--|--:|--:|--:|--:|"]
    for name in sorted(over, key=lambda x: over[x][_GAIN]["value"]):
        sizes = [one["methods"][name]["parameters"] for one in found["languages"].values() if name in one["methods"]]
        share = 100 * sum(sizes) / len(sizes) / MODEL_WEIGHTS
        cells = [table_cell(as_change(over[name][measure])) for measure in (_GAIN, _HARM)]
        cells += [f"{over[name]['drift']['value']:.2f}", f"{share:.2g}%" if share < 99 else "100%"]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def findings(found: dict) -> str:
    """Says which methods the language's neurons are better or worse than, on average over languages."""
    languages = found["over_languages"]["lape"][_GAIN]["units"]
    gain = with_interval(as_change(found["over_languages"]["lape"][_GAIN]))
    lines = [
        f"- **Gain**: on average over {languages} languages, training the language's neurons changes the perplexity of the "
        f"unseen genre by {gain}. {_verdicts(found, _GAIN, 'This is', 'better', 'worse')}",
        f"- **Other languages**: {_verdicts(found, _HARM, 'it is', 'better', 'worse')}",
        f"- **Drift** from the base: {_verdicts(found, 'drift', 'it is', 'smaller', 'larger')}",
    ]
    return "\n".join(lines) + "\n"


def _verdicts(found: dict, measure: str, start: str, better: str, worse: str) -> str:
    """Sorts the methods by the verdict of their difference to `lape`: clear of zero on either side, or not."""
    rivals: dict[str, list[str]] = {better: [], worse: [], "": []}
    for name, cells in found["over_languages_minus_lape"].items():
        low, high = cells[measure]["low"], cells[measure]["high"]
        if low is not None:
            rivals[better if low > 0 else worse if high < 0 else ""].append(NAMES[name])
    parts = [f"{word} than with {join_words(rivals[word])}" for word in (better, worse) if rivals[word]]
    if not parts:
        return "every difference is inconclusive."
    unclear = f"; the difference from {join_words(rivals[''])} is inconclusive" if rivals[""] else ""
    return f"{start} {', and '.join(parts)}{unclear}."


def costs(found: dict) -> str:
    """Tabulates what a method costs on the embedded model: what is trained, base, memory, time of a step, file."""
    lines = ["| method | trains | base | peak memory | a step | file |", "|:--|:--|:--|--:|--:|--:|"]
    steps = benchmark()
    sized = [one["methods"] for one in found["languages"].values()]
    for name, title in NAMES.items():
        files = [methods[name]["adapter_bytes"] for methods in sized if name in methods]
        size = f"{sum(files) / len(files) / 1e6:.1f} MB" if files else "not measured yet"
        step = steps.get(name)
        cells = [f"{step['peak_gib']:.1f} GiB", f"{step['seconds']:.1f} s"] if step else ["not measured yet"] * 2
        base = "8-bit" if METHODS[name].on_8bit else "16-bit"
        lines.append(f"| `{name}` | {title} | {base} | {' | '.join(cells)} | {size} |")
    return "\n".join(lines) + "\n"


def amounts(found: dict) -> str:
    """Tabulates gain by amount of training text, for the languages in which it was varied."""
    lines = ["| training text | language | the language's neurons | random neurons |", "|--:|:--|--:|--:|"]
    for one in found["languages"].values():
        rows = {DEFAULT_TOKENS: {name: one["methods"][name]["changes"][_GAIN] for name in ("lape", "random")}}
        for run in one["ablations"]:
            if run["max_tokens"] != DEFAULT_TOKENS:
                rows.setdefault(run["max_tokens"], {})[run["method"]] = run["changes"][_GAIN]
        for tokens, cells in sorted(rows.items()) if len(rows) > 1 else ():
            changes = " | ".join(table_cell(as_change(cells[x])) if x in cells else "" for x in ("lape", "random"))
            lines.append(f"| {tokens:,} tokens | {one['name']} | {changes} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def predicted() -> str:
    """Tabulates predicted memory, and hours for two million tokens at the speeds that are assumed."""
    plan = read("benchmarks/plan.json")
    if plan is None:
        return "```{note}\nNot predicted yet: `make bench` writes it.\n```\n"
    lines = [f"| model | neurons | peak memory | on 16 GB | hours at {_SPEED / 1e12:.0f} TFLOP/s |"]
    lines.append("|:--|--:|--:|:--|--:|")
    for row in plan["planned"]:
        if row["bits"] == 8 and row["recomputed"]:
            name, fits = row["model"].split("/")[-1], "fits" if row["fits"] else "too large"
            hours = _TOKENS * row["operations_per_token"] / _SPEED / 3600
            lines.append(f"| {name} | {row['neurons']:,} | {row['peak_gb']:.1f} GB | {fits} | {hours:.1f} |")
    return "\n".join(lines) + "\n"


def measured_runs() -> str:
    """Tabulates time and memory of the default runs of the embedded model, as they were measured."""
    runs = [metrics["adapter"] for metrics in metrics_by_language().values()]
    if not runs:
        return "Not measured yet.\n"
    minutes = sorted(run["seconds"] / 60 for run in runs)
    speeds = sorted(run["tokens"] / run["seconds"] for run in runs)
    peak = max(run["peak_memory_gib"] for run in runs)
    return (
        "| model | languages | tokens | minutes | tokens a second | peak memory |\n|:--|--:|--:|--:|--:|--:|\n"
        f"| gemma-3-270m, two CPU cores | {len(runs)} | {max(run['tokens'] for run in runs):,} | "
        f"{minutes[0]:.1f} to {minutes[-1]:.1f} | {speeds[0]:.0f} to {speeds[-1]:.0f} | {peak:.1f} GiB |\n"
    )
