"""Tables and sentences with the results of the experiments on common mistakes."""

from __future__ import annotations

import math

from making.results import format_rate, language_name, percent, read, table_cell, with_interval
from ssetools.evaluation.perplexity import change


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that the page includes; a note for an experiment without results."""
    results = experiments()
    tables = {"bos": bos, "memorised": memorised, "rates": rates, "padding": padding, "merging": merging}
    note = "```{{note}}\nNo results yet: `python -m study.fooling --only {name}` runs this experiment.\n```\n"
    return {
        f"fooling-{name}": table(results[name]) if name in results else note.format(name=name)
        for name, table in tables.items()
    }


def experiments() -> dict[str, dict]:
    """Returns the results of the experiments by name."""
    return (read("fooling.json") or {"experiments": {}})["experiments"]


def target() -> str:
    """Returns the code of the language that the experiments train."""
    return read("fooling.json")["lang"]


def changes_without_bos(results: dict) -> dict[str, dict[str, dict]]:
    """Returns the changes of the model trained without BOS, by how it is scored ("with", "without") and by language."""
    return {
        way: {x: change(results["base"][way][x], results["trained without"][way][x]) for x in results["base"][way]}
        for way in ("without", "with")
    }


def bos(results: dict) -> str:
    """Tabulates the model trained without BOS, scored without and with it."""
    changes, base = changes_without_bos(results), results["base"]
    with_bos = {x: change(base["with"][x], results["trained with"]["with"][x]) for x in base["with"]}
    lines = [
        "| language | base, no BOS | base, BOS | trained and measured without BOS | trained without, measured with | trained and measured with BOS |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for code in base["with"]:
        cells = [f"{base[way][code]['perplexity']:.1f}" for way in ("without", "with")]
        cells += [percent(x[code]["percent"]) for x in (changes["without"], changes["with"], with_bos)]
        lines.append(f"| {language_name(code)} | {' | '.join(cells)} |")
    improved = {way: sum(x["percent"] < 0 for x in of_way.values()) for way, of_way in changes.items()}
    lines += [
        "",
        f"Measured without BOS, as it was trained, the model improves in {_count(improved['without'], len(with_bos))} "
        f"languages, although only {language_name(target())} was trained. Measured with BOS, as it is meant to be used, "
        f"it improves in {_count(improved['with'], len(with_bos))}.",
    ]
    return "\n".join(lines) + "\n"


def _count(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}" if count else f"none of {total}"


def memorised(results: dict) -> str:
    """Tabulates perplexity by the number of passes over the declaration."""
    passes = results["passes"]
    texts = list(passes["0"])
    lines = ["| passes | " + " | ".join(texts) + " |", "|--:|" + "--:|" * len(texts)]
    for number, scores in passes.items():
        lines.append(f"| {number} | " + " | ".join(f"{scores[x]['perplexity']:.1f}" for x in texts) + " |")
    last = list(passes)[-1]
    changes = {x: with_interval(change(passes["0"][x], passes[last][x])) for x in texts}
    lines += [
        "",
        f"Changes after {last} passes: {changes['trained on']} on the training articles, {changes['same document']} on "
        f"held-out articles of the same document, {changes['sentences']} on sentences of an unseen genre.",
    ]
    return "\n".join(lines) + "\n"


def rates(results: dict) -> str:
    """Tabulates both methods at both rates, and the comparisons at equal and at unequal rates."""
    scores = {(run["method"], run["learning_rate"]): run["scores"] for run in results["runs"]}
    high, low = sorted({rate for _, rate in scores}, reverse=True)
    lines = ["| | " + " | ".join(f"rate {format_rate(x)}" for x in (high, low)) + " |", "|:--|--:|--:|"]
    for method, title in (("lape", "the language's neurons"), ("random", "random neurons")):
        cells = [table_cell(change(results["base"], scores[method, rate])) for rate in (high, low)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append("")
    for case, rate, rate_of_control in (
        ("Neurons at the high rate, control at the low rate", high, low),
        ("Neurons at the low rate, control at the high rate", low, high),
        ("Both at the high rate", high, high),
        ("Both at the low rate", low, low),
    ):
        difference = change(scores["random", rate_of_control], scores["lape", rate])
        verdict = "better" if difference["percent"] < 0 else "worse"
        if difference["low"] is not None and difference["low"] <= 0 <= difference["high"]:
            verdict = "inconclusive"
        lines.append(
            f"- {case}: the neurons' perplexity is {with_interval(difference)} relative to the control: {verdict}."
        )
    return "\n".join(lines) + "\n"


def padding(results: dict) -> str:
    """Tabulates the loss with padding and on words only, for both ways of training."""
    lines = [
        "| | loss with padding, before | after | loss on words, before | after | perplexity on words |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    base = results["base"]
    for counted, title in (("counted", "padding in the loss"), ("ignored", "padding excluded")):
        after = results["runs"][counted]["after"]
        perplexity = percent(100 * math.expm1(after["ignored"] - base["ignored"]))
        cells = [f"{x:.2f}" for x in (base["counted"], after["counted"], base["ignored"], after["ignored"])]
        lines.append(f"| {title} | {' | '.join(cells)} | {perplexity} |")
    lines += ["", f"{100 * results['padding share']:.0f}% of the tokens are padding."]
    return "\n".join(lines) + "\n"


BASE_OF = {"delta beside 8-bit": "8-bit base", "merged into int8": "8-bit base", "merged into 16-bit": "16-bit base"}
"""The base model with which each model of the experiment on merging is compared."""


def merging(results: dict) -> str:
    """Tabulates the delta beside 8-bit weights, merged into them, and merged into 16-bit weights."""
    lines = ["| model | perplexity | change from its base |", "|:--|--:|--:|"]
    for name in ("8-bit base", "delta beside 8-bit", "merged into int8", "16-bit base", "merged into 16-bit"):
        cell = table_cell(change(results[BASE_OF[name]], results[name])) if name in BASE_OF else ""
        lines.append(f"| {name} | {results[name]['perplexity']:.2f} | {cell} |")
    difference = with_interval(change(results["delta beside 8-bit"], results["merged into int8"]))
    lines += ["", f"Merging into int8 changes the perplexity by {difference} relative to the delta beside the weights."]
    lines += ["", "| projection | int8 step | delta | error of the merged delta |", "|:--|--:|--:|--:|"]
    for row in results["projections"]:
        lines.append(f"| {row['projection']} | {row['step']:.1e} | {row['delta']:.1e} | {100 * row['error']:.0f}% |")
    return "\n".join(lines) + "\n"
