"""The results beside each claim of the paper."""

from __future__ import annotations

from making.compared import METHOD_TITLES, as_change, languages_in_full, summary
from making.results import (
    format_rate,
    join_words,
    language_name,
    metrics_by_language,
    percent,
    percent_trained,
    read,
    unseen_genre,
    with_interval,
)
from ssetools.languages import get_language

_NO_COMPARISON = "The comparison has not been run yet: `make compare` runs it.\n"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that the page includes."""
    return {
        "claim-beats": gain_claim(),
        "claim-share": share_claim(),
        "claim-kept": retention_claim(),
        "claim-atlas": atlas_claim(),
    }


def gain_claim(measure: str = "target, sentences") -> str:
    """Lists, for each rival, the languages in which the language's neurons are better, worse, or inconclusive."""
    comparison = summary()
    if comparison is None:
        return _NO_COMPARISON
    lines = ["| against | better in | worse in | inconclusive in |", "|:--|:--|:--|:--|"]
    for rival, title in METHOD_TITLES.items():
        languages: dict[str, list[str]] = {"better": [], "worse": [], "inconclusive": []}
        for lang, of_language in comparison["languages"].items():
            difference = ((of_language["methods"].get(rival) or {}).get("minus_lape") or {}).get(measure)
            if difference and difference["verdict"] in languages:
                languages[difference["verdict"]].append(language_name(lang))
        total = sum(map(len, languages.values()))
        if total:
            cells = [f"all {total}" if len(x) == total > 1 else join_words(x) or "–" for x in languages.values()]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    in_full = join_words([language_name(lang) for lang in languages_in_full(comparison)])
    text = f"{in_full} have several seeds and a rate search of their own. {describe_comparison()}"
    return "\n".join(lines) + f"\n\n{text}\n"


def share_claim() -> str:
    """States the range of the share of trained weights over the languages."""
    shares = {code: percent_trained(metrics["adapter"]) for code, metrics in metrics_by_language().items()}
    if not shares:
        return "No results yet.\n"
    lowest, highest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return (
        f"*Result*: between {shares[lowest]:.2f}% ({language_name(lowest)}) and {shares[highest]:.2f}% "
        f"({language_name(highest)}) of the weights of Gemma 3 270M, in {len(shares)} languages.\n"
    )


def retention_claim() -> str:
    """States how the other languages changed, over the trained languages."""
    means, english = {}, {}
    for code, metrics in metrics_by_language().items():
        if genre := unseen_genre(metrics):
            means[code] = metrics["summary"][genre]["mean_of_others"]
            english[code] = metrics["summary"][genre]["english"]
    if not means:
        return "No results yet.\n"
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    worse = [language_name(code) for code, x in english.items() if x["low"] is not None and x["low"] > 0]
    of_english = (
        f"English got worse when {join_words(worse)} was trained, with an interval that excludes zero"
        if worse
        else "for no language is the change in English an increase with an interval that excludes zero"
    )
    return (
        f"With the default settings, the mean change in other languages on the unseen genre is between "
        f"{percent(means[lowest])} ({language_name(lowest)} trained) and {percent(means[highest])} "
        f"({language_name(highest)} trained); {of_english}. "
        "The mean does not show single languages that got worse: they are listed in [What it gains and what it "
        f"costs](gains.md).{retention_at_chosen_rates()}\n"
    )


def retention_at_chosen_rates() -> str:
    """States how the other languages changed with `lape` at the rates of the comparison; empty without a comparison."""
    comparison = summary()
    if comparison is None:
        return ""
    parts, worse = [], False
    for lang in languages_in_full(comparison):
        lape = comparison["languages"][lang]["methods"]["lape"]
        change = as_change(lape["changes"]["others, sentences"])
        worse |= change["low"] is not None and change["low"] > 0
        parts.append(
            f"{with_interval(change)} with {language_name(lang)} trained at {format_rate(lape['learning_rate'])}"
        )
    text = (
        " The comparison chooses the rate by text of the trained language only. There, training the same neurons changed the "
        f"perplexity of the other languages' sentences by {join_words(parts)}."
    )
    return f"{text} So retention depends on a low rate, and not on the choice of neurons alone." if worse else text


def atlas_claim() -> str:
    """States how many languages and families the atlas has, and what its tests found."""
    selections = read("atlas/selections.json")
    if selections is None:
        return "No results yet: `make atlas` makes them.\n"
    codes = selections["groups"]["all"].split()
    families = {get_language(code).lineage[0] for code in codes}
    return f"*Result*: neuron sets for {len(codes)} languages of {len(families)} families. {describe_atlas()}\n"


def describe_comparison() -> str:
    """States how each method compares with the language's neurons on average; empty without a comparison."""
    comparison = summary()
    differences = comparison["over_languages_minus_lape"] if comparison else {}
    if not differences:
        return ""
    parts = [
        f"{title} {with_interval(as_change(differences[method]['target, sentences']))}"
        for method, title in METHOD_TITLES.items()
        if method in differences
    ]
    languages = max(x["target, sentences"]["units"] for x in differences.values())
    return (
        f"On average over {languages} languages, the final perplexity on sentences relative to training the language's own "
        f"neurons is: {join_words(parts)} (95% intervals over languages; all methods under equal conditions). Negative "
        "values are better than the language's neurons; an interval that includes zero is inconclusive."
    )


def describe_atlas(rate: str = "5") -> str:
    """States in three sentences what the analyses of the atlas found; empty unless all of them have results.

    Args:
        rate: Percent of all neurons that the selection takes.
    """
    names = ("families", "more_text", "kinds", "deactivation")
    tests, stability, genres, deactivation = (read(f"atlas/{name}.json") for name in names)
    if None in (tests, stability, genres, deactivation):
        return ""
    genealogy, script = (
        tests[rate]["all languages"][f"overlap and {x}"]
        for x in ("genealogy, controlling for script", "script, controlling for genealogy")
    )
    tokens, with_most_text = list(stability[rate].items())[-1]
    passed = [not x["fails"] for x in deactivation["specificity"].values()]
    return (
        f"The overlap of neuron sets correlates with kinship (r = {genealogy['r']:.2f}, p = {genealogy['p']:.2g}, "
        f"controlling for script) and with script (r = {script['r']:.2f}, p = {script['p']:.2g}, controlling for kinship). "
        f"When switched off, {sum(passed)} of {len(passed)} sets increase the loss of their own language more than any other "
        f"set does. A set depends on its text: two parts of {int(tokens):,} tokens each agree with a Jaccard index of "
        f"{with_most_text['mean']['jaccard']:.2f}, and the agreement across genres is "
        f"{genres[rate]['mean']['share']:.0%} of the agreement within a genre."
    )
