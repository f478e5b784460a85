"""The comparison in words, made from its numbers: who is best at what, and where nobody can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas

from ssetools.evaluation.intervals import MIN_UNITS, percent, with_interval
from ssetools.languages import get_language
from study.compare.effects import MEASURES, across_languages, differences, effects
from study.compare.results import CONTROL, Findings
from study.compare.runs import Arm

RIVALS = ("random", "lora-equal", "full")
"""The methods that `lape` has to beat: its control in the same layers, LoRA of equal size, and all weights."""

BETTER, WORSE, EQUAL, UNKNOWN = "better", "worse", "not told apart", "no verdict"


def judged(table: pandas.DataFrame, over_languages: bool = False) -> pandas.DataFrame:
    """Adds `verdict` to a table of differences: is the method compared with better than each, or worse?

    An interval that crosses zero tells nothing apart. Without an interval (too few windows) nothing is said at all, nor
    of one seed: its interval is over text alone, and seeds differ by more than that.

    Args:
        table: From `effects.differences`, or `effects.across_languages`.
        over_languages: The latter, whose units are languages: one seed in each is enough.
    """
    verdict = pandas.Series(EQUAL, table.index)
    verdict[table.low > 0], verdict[table.high < 0], verdict[table.low.isna()] = BETTER, WORSE, UNKNOWN
    if not over_languages:
        verdict[table.seeds == 1] = UNKNOWN
    return table.assign(verdict=verdict)


def best(found: Findings) -> list[str]:
    """Says, for each measure of a language, which method is best, and which others cannot be told apart from it."""
    table = effects(*found.pair, found.lang)
    sentences, compared = [], {}
    for measure, part in table.groupby("measure", sort=False):
        top = part.loc[part.value.idxmin()]
        if top.method not in compared:
            compared[top.method] = judged(differences(*found.pair, found.lang, top.method))
        others = compared[top.method].query("measure == @measure")
        said = f"{name_of(measure, found)}: best is {top.method}, {number(top)}."
        if (others.verdict == UNKNOWN).any():
            said += f" One seed or fewer than {MIN_UNITS} units: nobody is told apart."
        elif (others.verdict == EQUAL).any():
            said += f" Not told apart from it: {', '.join(others.method[others.verdict == EQUAL])}."
        elif len(others):
            said += " All others are worse."
        sentences.append(said)
    return sentences


def against(found: Findings, rivals: Sequence[str] = RIVALS, to: str = "lape") -> list[str]:
    """Says where a method is better than each rival, where it is worse, and where the two cannot be told apart.

    The numbers are the rival's perplexity over that of the method (or its drift less that of the method).
    """
    table = judged(differences(*found.pair, found.lang, to))
    sentences = []
    for rival in rivals:
        rows = table[table.method == rival]
        sentences.append(_against(rows, rival, to, lambda measure: name_of(measure, found)))
    return sentences


def against_on_average(found: Mapping[str, Findings], rivals: Sequence[str] = RIVALS, to: str = "lape") -> list[str]:
    """Says the same of the means over languages, with intervals over languages."""
    table = judged(across_languages({lang: one.pair for lang, one in found.items()}, to), over_languages=True)
    return [_against(table[table.method == rival], rival, to, str) for rival in rivals]


def _against(rows, rival, to, name) -> str:
    if rows.empty:
        return f"{to} against {rival}: {rival} is not scored yet."
    parts = []
    for verdict, opening in ((BETTER, "Better on"), (WORSE, "Worse on"), (EQUAL, "Not told apart on")):
        where = "; ".join(f"{name(row.measure)} {number(row)}" for row in rows[rows.verdict == verdict].itertuples())
        parts.append(f"{opening} {where or 'nothing'}.")
    unknown = rows[rows.verdict == UNKNOWN]
    if len(unknown):
        where = "; ".join(f"{name(row.measure)} {number(row)}" for row in unknown.itertuples())
        parts.append(f"No verdict (one seed, fewer than {MIN_UNITS} units, or one text for all): {where}.")
    return f"{to} against {rival}: {' '.join(parts)}"


def losses(found: Findings, to: str = "lape") -> list[str]:
    """Says where a method is worse than another, with an interval clear of zero; one sentence for each measure."""
    table = judged(differences(*found.pair, found.lang, to))
    sentences = []
    for measure in MEASURES:
        rows = table[(table.measure == measure) & (table.verdict == WORSE)].sort_values("value")
        if len(rows):
            named = ", ".join(f"{row.method} {number(row)}" for row in rows.itertuples())
            sentences.append(f"{name_of(measure, found)}: {to} loses to {named}.")
    return sentences or [f"{to} loses to no method on any measure, as far as the intervals can say."]


def tally(found: Mapping[str, Findings], to: str = "lape", rivals: Sequence[str] = RIVALS) -> pandas.DataFrame:
    """Counts over languages: a row per rival and measure, with in how many a method is better, worse, not told apart."""
    rows = [
        {"against": row.method, "measure": row.measure, "verdict": row.verdict}
        for one in found.values()
        for row in judged(differences(*one.pair, one.lang, to)).itertuples()
        if row.method in rivals
    ]
    table = pandas.DataFrame(rows, columns=["against", "measure", "verdict"])
    counts = table.groupby(["against", "measure"]).verdict.value_counts().unstack(fill_value=0)
    order = [(rival, measure) for rival in rivals for measure in MEASURES if (rival, measure) in counts.index]
    return counts.reindex(index=order, columns=[BETTER, EQUAL, WORSE, UNKNOWN], fill_value=0)


def ablated(found: Findings, measure: str = "target, sentences") -> pandas.DataFrame:
    """Compares `lape` with its control at every setting of the ablations.

    Returns:
        A row per setting: what is set, numbers trained, the changes of both, and the paired difference (control less
        `lape`), with intervals over text alone. One seed is judged no further: `spread_over_seeds` says why.
    """
    rows, settings = [], {}
    for run in found.ablations:
        settings.setdefault(Arm(**{**run["arm"], "method": "lape"}), {})[run["arm"]["method"]] = run
    for arm, pair in settings.items():
        changes = effects(list(pair.values()), found.bases, found.lang).query("measure == @measure").set_index("method")
        row = {"setting": _setting(arm), "numbers trained": pair[min(pair)]["parameters"]}
        row |= {method: number(changes.loc[method]) for method in ("lape", CONTROL) if method in pair}
        if len(pair) == 2:
            table = differences(list(pair.values()), found.bases, found.lang).query("measure == @measure")
            row["difference"] = number(table.iloc[0])
        rows.append(row)
    return pandas.DataFrame(rows)


def spread_over_seeds(found: Findings, measure: str = "target, sentences") -> list[str]:
    """Says how the control lies to `lape` seed by seed, at the settings of the comparison: what one seed may hide."""
    parts = []
    for seed in sorted({run["arm"]["seed"] for run in found.runs}):
        pair = [run for run in found.runs if run["arm"]["seed"] == seed and run["arm"]["method"] in ("lape", CONTROL)]
        if len(pair) == 2:
            table = differences(pair, found.bases, found.lang).query("measure == @measure")
            parts.append(f"{percent(table.iloc[0].value)} with seed {seed}")
    return [f"{name_of(measure, found)}: {CONTROL} against lape {', '.join(parts)}."] if parts else []


def _setting(arm: Arm) -> str:
    if arm.budget is not None:
        return f"own budget, {100 * arm.budget:g}% of the weights"
    if arm.max_tokens != Arm.max_tokens:
        return f"{arm.max_tokens:,} tokens"
    return f"{100 * arm.top_rate:g}% selected" + (", as compared above" if arm.top_rate == Arm.top_rate else "")


def listed(found: Mapping[str, Findings], say: Callable[[Findings], list[str]]) -> str:
    """Writes the sentences of every language as a list under its name, in Markdown."""
    return "\n\n".join(
        f"**{get_language(lang).name}**\n\n" + "\n".join(f"- {line}" for line in say(one))
        for lang, one in found.items()
    )


def edges(found: Findings) -> list[str]:
    """Says which rate each method chose, and which lie at the edge of their grid, where a better one may lie beyond."""
    if found.search.empty:
        rates = {run["arm"]["method"]: run["arm"]["learning_rate"] for run in found.runs}
        listed_rates = ", ".join(f"{method} {rate:g}" for method, rate in rates.items())
        return [f"It took its rates from other languages: {listed_rates}."]
    chosen = found.search[found.search.chosen.astype(bool)]
    sentences = [", ".join(f"{row.method} {row.learning_rate:g}" for row in chosen.itertuples()) + "."]
    edge = ", ".join(chosen.method[chosen.at_edge.astype(bool)])
    last = max(row["step"] for run in found.runs for row in run["history"]) if found.runs else None
    longest = ", ".join(chosen.method[chosen.best_step == last])
    return [
        *sentences,
        f"At the edge of the grid, a better rate may lie beyond: {edge}." if edge else "None at the edge.",
        *([f"Best at the last of {last} steps, more may help: {longest}."] if longest else []),
    ]


def name_of(measure: str, found: Findings) -> str:
    """Names a measure for a reader, such as "Yoruba, sentences"."""
    if measure == "drift":
        return "drift"
    who, kind = measure.split(", ")
    others = len(next(iter(found.bases.values()))[kind]) - 1
    names = {"target": get_language(found.lang).name, "English": "English", "others": f"{others} other languages"}
    return f"{names[who]}, {kind}"


def number(row) -> str:
    """Writes a value of a table with its unit and interval."""
    digits, unit = (4, " nats") if row.measure == "drift" else (1, "%")
    return with_interval(row.value, row.low, row.high, digits, unit)
