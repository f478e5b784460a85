"""The tables and cards of the languages: the gallery, and what was measured in each."""

from __future__ import annotations

from making.results import (
    in_cell,
    listed,
    measured,
    missing,
    name_of,
    other_kind,
    percent,
    percent_trained,
    read,
    with_interval,
)
from ssetools.languages import TARGET_LANGUAGES, get_language


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    return {
        "gallery": gallery(),
        "languages": languages_table(),
        "not-yet": not_yet(),
        "worst": worst(),
    }


def not_yet() -> str:
    """Says which languages have no results yet; empty when all have."""
    if not missing():
        return ""
    names = listed([name_of(code) for code in missing()])
    return f"```{{note}}\nNot measured yet: {names}. `make notebooks` measures what is missing and adds it here.\n```\n"


def languages_table() -> str:
    """Writes one row a language: neurons, and the change of perplexity on each kind of text."""
    found = measured()
    kinds = list(dict.fromkeys(kind for metrics in found.values() for kind in metrics["summary"]))
    other = {other_kind(metrics) for metrics in found.values()}
    kinds.sort(key=lambda kind: kind not in other)  # what decides stands beside the name, in sight on a phone
    titles = [f"{kind},<br>another kind" if kind in other else kind for kind in kinds]
    lines = ["| language | " + " | ".join(titles) + " | English | others |"]
    lines.append("|:--|" + "--:|" * (len(kinds) + 2))
    for code, metrics in found.items():
        about, summary = metrics["adapter"], metrics["summary"]
        kept = summary[other_kind(metrics) or next(iter(summary))]
        cells = [f"{name_of(code)}<br><small>{about['neurons']:,} neurons</small>"]
        cells += [in_cell(summary[kind]["target"]) if kind in summary else "" for kind in kinds]
        cells += [in_cell(kept["english"]), percent(kept["mean_of_others"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worst() -> str:
    """Names, for each measured language, the other language that lost most on text of another kind."""
    lines = []
    for code, metrics in measured().items():
        others = metrics["summary"][other_kind(metrics) or next(iter(metrics["summary"]))]["others"]
        loser = max(others, key=lambda x: others[x]["percent"])
        if others[loser]["percent"] > 0:
            lines.append(f"- {name_of(code)} trained: {name_of(loser)} {percent(others[loser]['percent'])}")
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """Writes a card a language."""
    found = measured()
    speakers = read("../speakers.json")["speakers"]
    cards = [_card(code, found.get(code), speakers[code]) for code in TARGET_LANGUAGES]
    return ":::::{grid} 1 2 2 2\n:gutter: 3\n\n" + "\n".join(cards) + ":::::\n"


def _card(code: str, metrics: dict | None, speakers: int) -> str:
    known = get_language(code)
    own = f'<span class="own-name" lang="{code}">{known.own_name}</span>'
    lines = [f"::::{{grid-item-card}} {known.name}", ":class-card: language"]
    # The page of the language is made by the same build.
    lines += [] if metrics is None else [f":link: languages/{code}", ":link-type: doc"]
    lines += ["", own, ""]
    lines += [f"{known.family}, {in_words(speakers)} speakers", ""]
    if metrics is None:
        lines += ["*Not measured yet.*", ""]
    else:
        lines += [*_facts(metrics), ""]
    return "\n".join([*lines, "::::", ""])


def _facts(metrics: dict) -> list[str]:
    about, summary = metrics["adapter"], metrics["summary"]
    kind = other_kind(metrics)
    lines = [f"- {about['neurons']:,} neurons, {percent_trained(about):.2f}% of the weights"]
    same = [f"{x} {percent(summary[x]['target']['percent'])}" for x in metrics["same_kind"] if x in summary]
    lines.append(f"- trained kind: {', '.join(same)}")
    if kind:
        others = summary[kind]
        lines.append(f"- **another kind: {with_interval(others['target'])}**")
        if others["mean_of_others"] is not None:
            lines.append(f"- {len(others['others'])} other languages: {percent(others['mean_of_others'])}")
    return lines


def in_words(number: int) -> str:
    """Writes a number of people with two digits: 24,000,000 as "24 million"."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}" if number < 10 * unit else f"{round(number / unit)} {name}"
    return f"{round(number, -3):,}"
