"""The paper's claims beside what was measured here."""

from __future__ import annotations

from making.compared import as_change, leading, summary
from making.results import listed, measured, name_of, other_kind, percent, percent_trained, rate, read, with_interval
from ssetools.languages import get_language

_RIVALS = {
    "full": "all weights",
    "ffn": "all FFN weights",
    "lora": "LoRA",
    "lora-equal": "LoRA of equal size",
    "random": "random neurons of the same layers",
    "random-uniform": "random neurons of any layer",
    "ia3": "IA3",
}
_TODO = "The comparison has not been run yet: `make compare` runs it.\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that the page includes."""
    return {"claim-beats": beats(), "claim-share": share(), "claim-kept": kept(), "claim-atlas": atlas()}


def beats(measure: str = "target, sentences") -> str:
    """Says against each rival in which languages the language's neurons are better, worse, or not told apart."""
    found = summary()
    if found is None:
        return _TODO
    lines = ["| against | better in | worse in | not told apart in |", "|:--|:--|:--|:--|"]
    for rival, title in _RIVALS.items():
        where: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
        for lang, one in found["languages"].items():
            cell = ((one["methods"].get(rival) or {}).get("minus_lape") or {}).get(measure)
            if cell and cell["verdict"] in where:
                where[cell["verdict"]].append(name_of(lang))
        if any(where.values()):
            total = sum(map(len, where.values()))
            cells = [f"all {total}" if len(names) == total > 1 else listed(names) or "–" for names in where.values()]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    full = listed([name_of(lang) for lang in leading(found)])
    return "\n".join(lines) + f"\n\nSeveral seeds and a search of rates in {full}. {compared_findings()}\n"


def share() -> str:
    """Says what share of the weights was trained, over the measured languages."""
    shares = {code: percent_trained(metrics["adapter"]) for code, metrics in measured().items()}
    if not shares:
        return "Not measured yet.\n"
    least, most = (end(shares, key=shares.__getitem__) for end in (min, max))
    return (
        f"*What came out*: between {shares[least]:.2f}% ({name_of(least)}) and {shares[most]:.2f}% ({name_of(most)}) of "
        f"Gemma 3 270M's weights, in {len(shares)} languages.\n"
    )


def kept() -> str:
    """Says what other languages lost, over the measured languages."""
    means, english = {}, {}
    for code, metrics in measured().items():
        other = other_kind(metrics)
        if other:
            means[code] = metrics["summary"][other]["mean_of_others"]
            english[code] = metrics["summary"][other]["english"]
    if not means:
        return "Not measured yet.\n"
    least, most = (end(means, key=means.__getitem__) for end in (min, max))
    lost = [name_of(code) for code, moved in english.items() if moved["low"] is not None and moved["low"] > 0]
    said = f"English lost when {listed(lost)} was trained" if lost else "English lost in no case that could be measured"
    return (
        f"With the default recipe, the mean change over other languages on text of another kind lies between "
        f"{percent(means[least])} ({name_of(least)} trained) and {percent(means[most])} ({name_of(most)} trained); {said}. "
        "A mean hides single languages that lost: they are named in [What it gains and what it costs](gains.md)."
        f"{kept_at_chosen_rates()}\n"
    )


def kept_at_chosen_rates() -> str:
    """Says what other languages lost under `lape` at the rates that the comparison chose; empty before there is one."""
    found = summary()
    if found is None:
        return ""
    parts, lost = [], False
    for lang in leading(found):
        own = found["languages"][lang]["methods"]["lape"]
        moved = as_change(own["changes"]["others, sentences"])
        lost |= moved["low"] is not None and moved["low"] > 0
        parts.append(f"{with_interval(moved)} with {name_of(lang)} trained at {rate(own['learning_rate'])}")
    return (
        " In the comparison the rate is chosen by text of the trained language alone, and then the same neurons changed "
        f"the others' sentences by {listed(parts)}"
        + (": what keeps the rest of the model is a low rate, not the choice of neurons alone." if lost else ".")
    )


def atlas() -> str:
    """Says how many languages and families the atlas has."""
    found = read("atlas/selections.json")
    if found is None:
        return "Not made yet: `make atlas` makes it.\n"
    codes = found["groups"]["all"].split()
    families = {get_language(code).lineage[0] for code in codes}
    return f"*What came out*: sets for {len(codes)} languages of {len(families)} families. {atlas_findings()}\n"


def compared_findings() -> str:
    """Says in two sentences how every method compares with the language's neurons in the mean over languages."""
    found = summary()
    if found is None:
        return ""
    means = found["over_languages_minus_lape"]
    said = [
        f"{words} {with_interval(as_change(means[rival]['target, sentences']))}"
        for rival, words in _RIVALS.items()
        if rival in means
    ]
    if not said:
        return ""
    languages = max(one["target, sentences"]["units"] for one in means.values())
    return (
        f"Every method on equal terms, in the mean over {languages} languages: the perplexity that it ends at on sentences, "
        f"over that of training the language's own neurons, is {listed(said)} (95% intervals over languages). Minus is "
        "better than the language's neurons, and an interval that holds zero tells nothing apart."
    )


def atlas_findings(rate: str = "5") -> str:
    """Says in two sentences what the atlas found; empty before all of it is measured.

    Args:
        rate: Percent of all neurons that the selection takes.
    """
    names = ("families", "more_text", "kinds", "deactivation")
    tests, text, kinds, effects = (read(f"atlas/{name}.json") for name in names)
    if None in (tests, text, kinds, effects):
        return ""
    kin, script = (
        tests[rate]["all languages"][f"overlaps against {x} taken out"]
        for x in ("genealogy, script", "script, genealogy")
    )
    tokens, most = list(text[rate].items())[-1]
    able = [not x["fails"] for x in effects["specificity"].values()]
    return (
        f"Languages share neurons by kinship (r = {kin['r']:.2f}, p = {kin['p']:.2g}, script taken out) and by script "
        f"(r = {script['r']:.2f}, p = {script['p']:.2g}, kinship taken out), and switched off, {sum(able)} of {len(able)} "
        "sets hurt their own language more than any other set does. A set depends on its text: two parts of "
        f"{int(tokens):,} tokens agree to a Jaccard index of {most['mean']['jaccard']:.2f}, another kind of text to "
        f"{kinds[rate]['mean']['share']:.0%} of what parts of one kind agree to."
    )
