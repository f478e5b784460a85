"""The page on fooling oneself: what each of its five experiments found, in sentences and tables."""

from __future__ import annotations

import math

from making.results import in_cell, name_of, percent, rate, read, with_interval
from ssetools.evaluation.perplexity import change

NAMES = ("bos", "memorised", "rates", "padding", "merging")


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that the page includes; a note where an experiment is still to be run."""
    found = experiments()
    written = {"bos": bos, "memorised": memorised, "rates": rates, "padding": padding, "merging": merging}
    todo = "```{{note}}\nNot run yet: `python -m study.fooling --only {name}` runs it.\n```\n"
    return {f"fooling-{x}": written[x](found[x]) if x in found else todo.format(name=x) for x in NAMES}


def experiments() -> dict[str, dict]:
    """Returns what has been run, by name."""
    return (read("fooling.json") or {"experiments": {}})["experiments"]


def target() -> str:
    """Returns the code of the language that the experiments train."""
    return read("fooling.json")["lang"]


def bos_changes(found: dict) -> dict[str, dict[str, dict]]:
    """Returns the change of perplexity of the model trained without BOS, by way of measuring and language."""
    return {
        way: {x: change(found["base"][way][x], found["trained without"][way][x]) for x in found["base"][way]}
        for way in ("without", "with")
    }


def bos(found: dict) -> str:
    """Tabulates the model that was trained without BOS, measured without and with it."""
    moved = bos_changes(found)
    honest = {x: change(found["base"]["with"][x], found["trained with"]["with"][x]) for x in found["base"]["with"]}
    lines = [
        "| language | base, no BOS | base, BOS | trained and measured without BOS | trained without, measured with | trained and measured with BOS |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for code in found["base"]["with"]:
        base = [f"{found['base'][way][code]['perplexity']:.1f}" for way in ("without", "with")]
        cells = [percent(one[code]["percent"]) for one in (moved["without"], moved["with"], honest)]
        lines.append(f"| {name_of(code)} | {' | '.join([*base, *cells])} |")
    better = {way: sum(one["percent"] < 0 for one in by.values()) for way, by in moved.items()}
    lines += [
        "",
        f"Measured as it was trained, without BOS, {_of(better['without'], len(honest))} languages improve, though only "
        f"{name_of(target())} was trained. The same weights measured as the model is meant to be used: "
        f"{_of(better['with'], len(honest))}.",
    ]
    return "\n".join(lines) + "\n"


def _of(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}" if count else f"none of {total}"


def memorised(found: dict) -> str:
    """Tabulates perplexity by the number of passes over the declaration."""
    passes = found["passes"]
    kinds = list(passes["0"])
    lines = ["| passes | " + " | ".join(kinds) + " |", "|--:|" + "--:|" * len(kinds)]
    for number, scores in passes.items():
        lines.append(f"| {number} | " + " | ".join(f"{scores[kind]['perplexity']:.1f}" for kind in kinds) + " |")
    last = list(passes)[-1]
    moved = {kind: change(passes["0"][kind], passes[last][kind]) for kind in kinds}
    lines += [
        "",
        f"After {last} passes: the articles it is trained on {with_interval(moved['trained on'])}, held-out articles of "
        f"the same document {with_interval(moved['same document'])}, sentences of another kind "
        f"{with_interval(moved['sentences'])}.",
    ]
    return "\n".join(lines) + "\n"


def rates(found: dict) -> str:
    """Tabulates both methods at both rates, and what the unequal comparisons would have said."""
    runs = {(run["method"], run["learning_rate"]): run["scores"] for run in found["runs"]}
    high, low = sorted({peak for _, peak in runs}, reverse=True)
    lines = ["| | " + " | ".join(f"rate {rate(peak)}" for peak in (high, low)) + " |", "|:--|--:|--:|"]
    for method, title in (("lape", "the language's neurons"), ("random", "random neurons")):
        cells = [in_cell(change(found["base"], runs[method, peak])) for peak in (high, low)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append("")
    for said, own, control in (
        ("Neurons at the high rate against the control at the low one", ("lape", high), ("random", low)),
        ("The other way round", ("lape", low), ("random", high)),
        ("Both at the high rate", ("lape", high), ("random", high)),
        ("Both at the low rate", ("lape", low), ("random", low)),
    ):
        apart = change(runs[control], runs[own])
        lines.append(f"- {said}: the neurons' perplexity is {_versus(apart)}.")
    return "\n".join(lines) + "\n"


def _versus(apart: dict) -> str:
    text = f"{with_interval(apart)} against the control's"
    if apart["low"] is not None and apart["low"] < 0 < apart["high"]:
        return f"{text}: no difference that could be measured"
    return f"{text}: {'better' if apart['percent'] < 0 else 'worse'}"


def padding(found: dict) -> str:
    """Tabulates the loss as it is reported and on real tokens, for both ways of training."""
    lines = [
        "| | loss with padding, before | after | loss on words, before | after | perplexity on words |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    base = found["base"]
    for counted, title in (("counted", "padding in the loss"), ("ignored", "padding ignored")):
        after = found["runs"][counted]["after"]
        moved = 100 * math.expm1(after["ignored"] - base["ignored"])
        cells = [base["counted"], after["counted"], base["ignored"], after["ignored"]]
        lines.append(f"| {title} | {' | '.join(f'{x:.2f}' for x in cells)} | {percent(moved)} |")
    lines += ["", f"{100 * found['padding share']:.0f}% of the tokens are padding."]
    return "\n".join(lines) + "\n"


def merging(found: dict) -> str:
    """Tabulates the delta beside 8-bit weights, merged into them, and merged into 16-bit ones."""
    lines = ["| model | perplexity | change from its base |", "|:--|--:|--:|"]
    for name, base in (
        ("8-bit base", None),
        ("delta beside 8-bit", "8-bit base"),
        ("merged into int8", "8-bit base"),
        ("16-bit base", None),
        ("merged into 16-bit", "16-bit base"),
    ):
        moved = in_cell(change(found[base], found[name])) if base else ""
        lines.append(f"| {name} | {found[name]['perplexity']:.2f} | {moved} |")
    apart = change(found["delta beside 8-bit"], found["merged into int8"])
    lines += ["", f"Merged into int8, the perplexity is {with_interval(apart)} against the delta beside the weights."]
    lines += ["", "| projection | int8 step | delta | error of the merged delta |", "|:--|--:|--:|--:|"]
    for row in found["projections"]:
        lines.append(f"| {row['projection']} | {row['step']:.1e} | {row['delta']:.1e} | {100 * row['error']:.0f}% |")
    return "\n".join(lines) + "\n"
