"""Every method on equal terms: the tables of what each gained, kept and took, from the comparison's summary."""

from __future__ import annotations

from making.results import MODEL, in_cell, listed, name_of, percent, rate, read
from study.compare.runs import METHODS

TITLES = {
    "target, sentences": "sentences, another kind",
    "target, articles": "articles, trained kind",
    "English, sentences": "English sentences",
    "others, sentences": "others' sentences",
    "drift": "drift (nats)",
}
_ALONG = ("target, sentences", "others, sentences", "drift")
_FRAGMENTS = ("compare-tables", "compare-rates", "compare-mean", "compare-loses", "compare-each")
_TODO = "```{note}\nThe comparison has not been run yet: `make compare` runs it.\n```\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    found = summary()
    if found is None:
        return dict.fromkeys(_FRAGMENTS, _TODO) | {
            "compare-costs": costs({}, benchmark()),
            "compare-methods": methods(),
            "compare-missing": "",
            "compare-edges": "",
            "clone": clone(),
        }
    return {
        "compare-tables": "\n".join(table(lang, found["languages"][lang]) for lang in leading(found)),
        "compare-rates": "\n".join(rates(lang, found["languages"][lang]) for lang in leading(found)),
        "compare-mean": mean(found),
        "compare-loses": loses(found),
        "compare-each": each(found),
        "compare-costs": costs(found["languages"][leading(found)[0]]["methods"], benchmark()),
        "compare-methods": methods(),
        "compare-missing": missing(found),
        "compare-edges": edges(found),
        "clone": clone(),
    }


def summary() -> dict | None:
    """Returns the summary of the comparison, or None before there is one."""
    return read(f"compare/{MODEL}/summary.json")


def leading(found: dict) -> list[str]:
    """Returns the languages that were searched and run with several seeds; or else the first one."""
    full = [lang for lang, one in found["languages"].items() if one["search"]]
    return full or list(found["languages"])[:1]


def clone() -> str:
    """Says what copying costs beside deltas, where the benchmark has measured it."""
    rows = benchmark()
    if not {"clone", "lape"} <= set(rows):
        return ""
    copied, own = rows["clone"], rows["lape"]
    return (
        f"Measured on the 8-bit embedded model on two cores: a step that copies takes {copied['seconds']:.2f} seconds and "
        f"{copied['peak_gib']:.2f} GiB, a step with deltas {own['seconds']:.2f} seconds and {own['peak_gib']:.2f} GiB. A "
        f"step that trains next to nothing takes {rows['limit']['seconds']:.2f} seconds.\n"
    )


def benchmark() -> dict[str, dict]:
    """Returns the rows of `make bench` for the embedded model by method, each on the base that the method trains on."""
    rows = (read("benchmarks/training.json") or {"rows": []})["rows"]
    rows = [row for row in rows if row["model"] == MODEL]
    bits = {name: 8 if METHODS[name].on_8bit else 16 for name in METHODS}
    found = {row["variant"]: row for row in rows if row["bits"] == bits.get(row["variant"], 8)}
    return found | ({"random-uniform": found["random"]} if "random" in found else {})  # as many numbers


def methods() -> str:
    """Lists the methods: what each trains, and on which base."""
    lines = ["| method | trains | base |", "|:--|:--|:--|"]
    lines += [f"| {name} | {one.trains} | {'8-bit' if one.on_8bit else '16-bit'} |" for name, one in METHODS.items()]
    return "\n".join(lines) + "\n"


def methods_in(one: dict) -> list[str]:
    """Returns the methods that were run in a language, in the order of `METHODS`."""
    return [name for name in METHODS if name in one["methods"]]


def table(lang: str, one: dict) -> str:
    """Writes one language's table, a row a method."""
    lines = [f"::::{{dropdown}} {name_of(lang)}", "", "| method | " + " | ".join(TITLES.values()) + " |"]
    lines.append("|:--|" + "--:|" * len(TITLES))
    for name in methods_in(one):
        mine = one["methods"][name]
        cells = [_cell(mine["changes"].get(measure), measure) for measure in TITLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = sorted({len(mine["seeds"]) for mine in one["methods"].values()})
    said = f"Seeds for each method: {listed([str(x) for x in seeds])}."
    lines += ["", f"{said} Perplexity of the base, on sentences: {_bases(lang, one)}.", "::::"]
    return "\n".join(lines) + "\n"


def _bases(lang: str, one: dict) -> str:
    said = []
    for base, scores in one["base_perplexity"].items():
        bits, _, other = base.removeprefix("base-").partition("-")
        where = ", on another machine" if other else ""
        said.append(f"{scores['sentences'][lang]:.1f} ({bits.replace('bit', '-bit')}{where})")
    return listed(said)


def _cell(moved: dict | None, measure: str) -> str:
    if moved is None:
        return ""
    if measure == "drift":
        return f"{moved['value']:.4f}"
    return in_cell(as_change(moved))


def as_change(cell: dict) -> dict:
    """Returns a cell of the summary as the change in percent that `results` writes."""
    return {"percent": cell["value"], "low": cell["low"], "high": cell["high"]}


def rates(lang: str, one: dict) -> str:
    """Writes one language's table of the methods scored at every rate, a row a rate; the chosen one is set in bold."""
    if not one["traced"]:
        return ""
    titles = " | ".join(TITLES[measure] for measure in _ALONG)
    lines = [f"::::{{dropdown}} {name_of(lang)}, rate by rate", "", f"| method | peak rate | {titles} |"]
    lines.append("|:--|--:|" + "--:|" * len(_ALONG))
    for name, runs in one["traced"].items():
        for run in runs:
            bold = "**" if run["learning_rate"] == one["methods"][name]["learning_rate"] else ""
            peak = rate(run["learning_rate"]).replace("-", "\N{NON-BREAKING HYPHEN}")
            cells = [_cell(run["changes"].get(measure), measure) for measure in _ALONG]
            lines.append(f"| {name} | {bold}{peak}{bold} | {' | '.join(cells)} |")
    said = one["verdict"]["cost_of_gain"]
    return "\n".join([*lines, "", *[f"- {x}" for x in said], "::::", ""]) + "\n"


def mean(found: dict) -> str:
    """Writes the mean over languages, and how each method lies to `lape`."""
    over, apart = found["over_languages"], found["over_languages_minus_lape"]
    lines = ["| method | languages | sentences, another kind | against lape | others' sentences | against lape |"]
    lines.append("|:--|--:|--:|--:|--:|--:|")
    for name in [x for x in METHODS if x in over]:
        cells = [str(over[name]["target, sentences"]["units"])]
        for measure in ("target, sentences", "others, sentences"):
            cells += [_cell(over[name].get(measure), measure), _against(apart.get(name, {}).get(measure))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _against(cell: dict | None) -> str:
    """Says in a word how a method lies to `lape`; the verdict of the summary is `lape`'s."""
    if cell is None:
        return ""
    said = {"better": "worse", "worse": "better", "not told apart": "not told apart"}.get(cell["verdict"], "")
    return f"{percent(cell['value'])} {said}".strip()


def each(found: dict) -> str:
    """Writes a row a language: `lape`, its control, and whether they can be told apart."""
    lines = ["| language | lape | random, same layers | random against lape | seeds |", "|:--|--:|--:|--:|--:|"]
    for lang, one in found["languages"].items():
        own, control = (one["methods"].get(name) for name in ("lape", "random"))
        cells = [_cell(x and x["changes"]["target, sentences"], "") for x in (own, control)]
        cells.append(_against(control and (control["minus_lape"] or {}).get("target, sentences")))
        lines.append(f"| {name_of(lang)} | {' | '.join(cells)} | {len(own['seeds'])} |")
    return "\n".join(lines) + "\n"


def loses(found: dict) -> str:
    """Lists where `lape` is worse than another method, language by language."""
    lines = []
    for lang in leading(found):
        said = found["languages"][lang]["verdict"]["lape_loses"]
        lines += [f"**{name_of(lang)}**", "", *[f"- {x}" for x in said], ""]
    return "\n".join(lines) + "\n"


def costs(methods: dict, steps: dict) -> str:
    """Tabulates what a method takes: numbers, the optimiser's state, the file, and time and memory of a step."""
    names = [name for name in METHODS if name in methods or name in steps]
    if not names:
        return "```{note}\nNot measured yet: `make bench` measures the time and memory of a step.\n```\n"
    lines = ["| method | numbers | optimiser | file | seconds a step | over the limit | peak memory |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|")
    for name in names:
        mine, step = methods.get(name), steps.get(name)
        cells = [f"{mine['parameters']:,}", *_megabytes(mine)] if mine else ["", "", ""]
        cells += (
            [f"{step['seconds']:.2f}", f"{step['over_limit']:.2f}", f"{step['peak_gib']:.2f} GiB"] if step else [""] * 3
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _megabytes(mine: dict) -> list[str]:
    return [f"{mine[key] / 1e6:,.1f} MB" for key in ("optimizer_bytes", "adapter_bytes")]


def edges(found: dict) -> str:
    """Says where the best rate that was tried is the lowest or highest of its grid, so that a better one may lie beyond."""
    said = []
    for lang in leading(found):
        at = [row["method"] for row in found["languages"][lang]["search"] if row["chosen"] and row["at_edge"]]
        said += [f"{name_of(lang)} ({listed(at)})"] if at else []
    if not said:
        return ""
    return f"The best rate lies at the edge of the grid, and a better one may lie beyond it, in {listed(said)}.\n"


def missing(found: dict) -> str:
    """Says what the comparison still lacks; empty when nothing."""
    lines = [f"- {line}" for one in found["languages"].values() for line in one["missing"]]
    return "\n".join(["```{note}", "Not complete yet:", "", *lines, "```", ""]) if lines else ""
