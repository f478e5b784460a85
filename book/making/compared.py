"""Tables of the comparison of all methods, from its summary: gain, retention and cost."""

from __future__ import annotations

from making.results import MODEL, format_rate, join_words, language_name, percent, read, table_cell
from study.compare.runs import METHODS

MEASURE_TITLES = {
    "target, sentences": "sentences, unseen genre",
    "target, articles": "articles, seen genre",
    "English, sentences": "English sentences",
    "others, sentences": "others' sentences",
    "drift": "drift (nats)",
}
METHOD_TITLES = {
    "lape": "the language's neurons (LAPE)",
    "random": "random neurons of the same layers",
    "random-uniform": "random neurons of any layer",
    "lora": "LoRA of rank 32",
    "lora-equal": "LoRA of equal size",
    "ia3": "IA3",
    "ffn": "all FFN weights",
    "full": "all weights",
}
"""Names of the methods for a reader."""

_MEASURES_BY_RATE = ("target, sentences", "others, sentences", "drift")
_NO_COMPARISON = "```{note}\nThe comparison has not been run yet: `make compare` runs it.\n```\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    comparison, steps = summary(), benchmark()
    texts = {"compare-methods": methods_table(), "clone": describe_cost_of_copies(steps)}
    if comparison is None:
        names = ("compare-tables", "compare-rates", "compare-mean", "compare-loses", "compare-each")
        empty = {"compare-costs": cost_table({}, steps), "compare-missing": "", "compare-edges": ""}
        return texts | dict.fromkeys(names, _NO_COMPARISON) | empty
    in_full = {lang: comparison["languages"][lang] for lang in languages_in_full(comparison)}
    return texts | {
        "compare-tables": "\n".join(language_table(lang, x) for lang, x in in_full.items()),
        "compare-rates": "\n".join(rate_table(lang, x) for lang, x in in_full.items()),
        "compare-mean": mean_table(comparison),
        "compare-loses": losses(in_full),
        "compare-each": control_table(comparison),
        "compare-costs": cost_table(next(iter(in_full.values()))["methods"], steps),
        "compare-missing": describe_missing(comparison),
        "compare-edges": describe_rates_at_edge(in_full),
    }


def summary() -> dict | None:
    """Returns the summary of the comparison, or None if there is none."""
    return read(f"compare/{MODEL}/summary.json")


def languages_in_full(comparison: dict) -> list[str]:
    """Returns the languages that have a rate search and several seeds; if none has, the first language."""
    in_full = [lang for lang, x in comparison["languages"].items() if x["search"]]
    return in_full or list(comparison["languages"])[:1]


def describe_cost_of_copies(steps: dict[str, dict]) -> str:
    """States the cost of trainable copies of weights beside that of deltas; empty without a benchmark."""
    if not {"clone", "lape"} <= set(steps):
        return ""
    copies, deltas = steps["clone"], steps["lape"]
    return (
        f"Measured on the 8-bit embedded model on two cores: a step with copies takes {copies['seconds']:.2f} seconds and "
        f"{copies['peak_gib']:.2f} GiB, a step with deltas {deltas['seconds']:.2f} seconds and {deltas['peak_gib']:.2f} "
        f"GiB. A step that trains a single vector takes {steps['limit']['seconds']:.2f} seconds.\n"
    )


def benchmark() -> dict[str, dict]:
    """Returns the rows of `make bench` for the embedded model by method, with the precision at which the method trains."""
    rows = (read("benchmarks/training.json") or {"rows": []})["rows"]
    bits = {name: 8 if method.on_8bit else 16 for name, method in METHODS.items()}
    steps = {x["variant"]: x for x in rows if x["model"] == MODEL and x["bits"] == bits.get(x["variant"], 8)}
    # The two random methods train equally many parameters; only one is measured.
    return steps | ({"random-uniform": steps["random"]} if "random" in steps else {})


def methods_table() -> str:
    """Lists the methods with what each trains, and on which base model."""
    lines = ["| method | trains | base |", "|:--|:--|:--|"]
    lines += [f"| {name} | {x.trains} | {'8-bit' if x.on_8bit else '16-bit'} |" for name, x in METHODS.items()]
    return "\n".join(lines) + "\n"


def methods_of(of_language: dict) -> list[str]:
    """Returns the methods that were run in a language, in the order of `METHODS`."""
    return [name for name in METHODS if name in of_language["methods"]]


def language_table(lang: str, of_language: dict) -> str:
    """Returns one language's table, a row for each method."""
    lines = [f"::::{{dropdown}} {language_name(lang)}", "", "| method | " + " | ".join(MEASURE_TITLES.values()) + " |"]
    lines.append("|:--|" + "--:|" * len(MEASURE_TITLES))
    for name in methods_of(of_language):
        changes = of_language["methods"][name]["changes"]
        cells = [_cell(changes.get(measure), measure) for measure in MEASURE_TITLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = sorted({len(x["seeds"]) for x in of_language["methods"].values()})
    sentence = f"Seeds for each method: {join_words([str(x) for x in seeds])}."
    lines += ["", f"{sentence} Perplexity of the base on sentences: {_base_perplexities(lang, of_language)}.", "::::"]
    return "\n".join(lines) + "\n"


def _base_perplexities(lang: str, of_language: dict) -> str:
    parts = []
    for name, scores in of_language["base_perplexity"].items():
        bits, _, other_hardware = name.removeprefix("base-").partition("-")
        where = ", on other hardware" if other_hardware else ""
        parts.append(f"{scores['sentences'][lang]:.1f} ({bits.replace('bit', '-bit')}{where})")
    return join_words(parts)


def _cell(value: dict | None, measure: str) -> str:
    if value is None:
        return ""
    return f"{value['value']:.4f}" if measure == "drift" else table_cell(as_change(value))


def as_change(value: dict) -> dict:
    """Returns a value of the summary in the form that `results.with_interval` formats."""
    return {"percent": value["value"], "low": value["low"], "high": value["high"]}


def rate_table(lang: str, of_language: dict) -> str:
    """Returns one language's table of the methods that were scored at every rate, with the chosen rate in bold."""
    if not of_language["by_rate"]:
        return ""
    titles = " | ".join(MEASURE_TITLES[measure] for measure in _MEASURES_BY_RATE)
    lines = [f"::::{{dropdown}} {language_name(lang)}, rate by rate", "", f"| method | peak rate | {titles} |"]
    lines.append("|:--|--:|" + "--:|" * len(_MEASURES_BY_RATE))
    for name, runs in of_language["by_rate"].items():
        chosen = of_language["methods"].get(name, {}).get("learning_rate")
        for run in runs:
            bold = "**" if run["learning_rate"] == chosen else ""
            rate = format_rate(run["learning_rate"]).replace("-", "\N{NON-BREAKING HYPHEN}")
            cells = [_cell(run["changes"].get(measure), measure) for measure in _MEASURES_BY_RATE]
            lines.append(f"| {name} | {bold}{rate}{bold} | {' | '.join(cells)} |")
    sentences = of_language["sentences"]["drift_at_equal_gain"]
    return "\n".join([*lines, "", *[f"- {x}" for x in sentences], "::::", ""]) + "\n"


def mean_table(comparison: dict) -> str:
    """Returns the means over languages, and the difference of each method from `lape`."""
    means, differences = comparison["over_languages"], comparison["over_languages_minus_lape"]
    lines = ["| method | languages | sentences, unseen genre | against lape | others' sentences | against lape |"]
    lines.append("|:--|--:|--:|--:|--:|--:|")
    for name in [x for x in METHODS if x in means]:
        cells = [str(means[name]["target, sentences"]["units"])]
        for measure in ("target, sentences", "others, sentences"):
            cells.append(_cell(means[name].get(measure), measure))
            cells.append(_difference(differences.get(name, {}).get(measure)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(value: dict | None) -> str:
    """Formats a difference from `lape` with the verdict on the method; the verdict in the summary is on `lape`."""
    if value is None:
        return ""
    of_method = {"better": "worse", "worse": "better", "inconclusive": "inconclusive"}.get(value["verdict"], "")
    return f"{percent(value['value'])} {of_method}".strip()


def control_table(comparison: dict) -> str:
    """Returns a row for each language with `lape`, its control, and their difference."""
    lines = ["| language | lape | random, same layers | random against lape | seeds |", "|:--|--:|--:|--:|--:|"]
    for lang, of_language in comparison["languages"].items():
        lape, control = (of_language["methods"].get(name) for name in ("lape", "random"))
        cells = [_cell(x and x["changes"]["target, sentences"], "") for x in (lape, control)]
        cells.append(_difference(control and (control["minus_lape"] or {}).get("target, sentences")))
        lines.append(f"| {language_name(lang)} | {' | '.join(cells)} | {len(lape['seeds'])} |")
    return "\n".join(lines) + "\n"


def losses(by_language: dict[str, dict]) -> str:
    """Lists where `lape` is worse than another method, language by language."""
    lines = []
    for lang, of_language in by_language.items():
        lines += [f"**{language_name(lang)}**", "", *[f"- {x}" for x in of_language["sentences"]["lape_loses"]], ""]
    return "\n".join(lines) + "\n"


def cost_table(methods: dict, steps: dict) -> str:
    """Returns the size of each method, and the time and memory of its training step."""
    names = [name for name in METHODS if name in methods or name in steps]
    if not names:
        return "```{note}\nNo results yet: `make bench` measures the time and memory of a step.\n```\n"
    lines = ["| method | parameters | optimiser | file | seconds a step | over the limit | peak memory |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|")
    for name in names:
        cells = [""] * 6
        if method := methods.get(name):
            megabytes = [f"{method[key] / 1e6:,.1f} MB" for key in ("optimizer_bytes", "adapter_bytes")]
            cells[:3] = [f"{method['parameters']:,}", *megabytes]
        if step := steps.get(name):
            cells[3:] = [f"{step['seconds']:.2f}", f"{step['over_limit']:.2f}", f"{step['peak_gib']:.2f} GiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def describe_rates_at_edge(by_language: dict[str, dict]) -> str:
    """Names the methods whose chosen rate is the lowest or highest of its grid; empty if there are none."""
    parts = []
    for lang, of_language in by_language.items():
        methods = [row["method"] for row in of_language["search"] if row["chosen"] and row["at_edge"]]
        parts += [f"{language_name(lang)} ({join_words(methods)})"] if methods else []
    if not parts:
        return ""
    return (
        f"The chosen rate is at the edge of its grid in {join_words(parts)}: a rate outside the grid may be better.\n"
    )


def describe_missing(comparison: dict) -> str:
    """Lists the missing parts of the comparison; empty if it is complete."""
    lines = [f"- {line}" for x in comparison["languages"].values() for line in x["missing"]]
    return "\n".join(["```{note}", "The comparison is not complete:", "", *lines, "```", ""]) if lines else ""
