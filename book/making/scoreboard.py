"""A table of the paper's claims: whether each is confirmed, with a number and a link."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bs4 import BeautifulSoup

from making import harm
from making.compared import METHOD_TITLES, as_change, summary
from making.results import (
    BOOK,
    MODEL,
    RESULTS,
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
from study.compare.runs import read_run

YES, NO, UNTESTED = "**confirmed**", "**not confirmed**", "**not testable here**"
UNCLEAR = "**inconclusive**"
UNMEASURED = "no results yet"
_RIVALS = ("full", "ffn", "lora", "random-uniform", "random")
_GAIN = "target, sentences"
_FORGETTING = 5
"""Increase of the other languages' perplexity, in percent, that counts as forgetting."""
_ANALYSIS = BOOK / "languages" / "yo" / "05_analyze.ipynb"


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    return {
        "scoreboard": scoreboard(),
        "claim-dynamics": f"{_sentence(dynamics()[1])}\n",
        "claim-alignment": f"{_sentence(alignment()[1])}\n",
        "claim-weights": f"{_sentence(weight_changes()[1])}\n",
    }


def scoreboard() -> str:
    """Returns a row for each claim: the claim with a link to its section, its status, and a number."""
    rows = [(f"Better than {METHOD_TITLES[rival]}", *against(rival), "claim-beats") for rival in _RIVALS]
    rows += [(f"Better than {harm.TITLES[x]} at equal drift", *at_equal_drift(x), "claim-beats") for x in harm_rivals()]
    rows += [
        ("At most 1% of the weights", *share(), "claim-share"),
        ("No catastrophic forgetting", *retention(), "claim-kept"),
        ("Favourable training dynamics", *dynamics(), "claim-dynamics"),
        ("Better alignment between languages", *alignment(), "claim-alignment"),
        ("Weight changes differ between gate, up and down", *weight_changes(), "claim-weights"),
        ("Neuron sets for more than 100 languages", *atlas(), "claim-atlas"),
        ("Holds for Llama-3.1-8B, Mistral-Nemo-12B, Aya-8B", UNTESTED, "needs a GPU and the hub", "claim-beats"),
        (
            "Better translation and question answering",
            UNTESTED,
            "needs a larger model, and more questions than the declaration has",
            "claim-beats",
        ),
    ]
    lines = ["| the paper's claim | status | number |", "|:--|:--|:--|"]
    lines += [f"| [{claim}]({link}) | {status} | {number} |" for claim, status, number, link in rows]
    return "\n".join(lines) + "\n"


def against(rival: str) -> tuple[str, str]:
    """States whether the language's neurons gain more than a method, on average over languages."""
    comparison = summary()
    cell = comparison and comparison["over_languages_minus_lape"].get(rival, {}).get(_GAIN)
    if not cell:
        return UNTESTED, UNMEASURED
    number = f"perplexity {with_interval(as_change(cell))} relative to the neurons, {cell['units']} languages"
    return (YES if cell["low"] > 0 else NO), number


def harm_rivals() -> list[str]:
    """Returns the methods of the study at equal harm that train other weights than neurons selected for the language."""
    found = harm.summary()
    return [name for name in found["recipes"] if name not in ("lape", "specific", "specific-mean")] if found else []


def at_equal_drift(rival: str) -> tuple[str, str]:
    """States whether the paper's neurons (LAPE) gain more than a method at a drift of at most 0.03, on average."""
    difference = harm.summary()["differences"]["lape"][rival]["drift 0.03"]
    number = f"loss {with_interval(difference, unit='')} nats × 100 relative to it, {difference['languages']} languages"
    if harm.includes_zero(difference):
        return UNCLEAR, number
    return YES if difference["high"] < 0 else NO, number


def share() -> tuple[str, str]:
    """States how large the largest share of the weights is over the measured languages."""
    shares = {code: percent_trained(metrics["adapter"]) for code, metrics in metrics_by_language().items()}
    if not shares:
        return UNTESTED, UNMEASURED
    most = max(shares, key=shares.__getitem__)
    number = f"at most {shares[most]:.2f}% ({language_name(most)}) in {len(shares)} languages"
    return (YES if shares[most] <= 1 else NO), number


def retention() -> tuple[str, str]:
    """States the change in other languages in the gallery's runs, and the largest in the comparison."""
    means = {
        code: metrics["summary"][genre]["mean_of_others"]
        for code, metrics in metrics_by_language().items()
        if (genre := unseen_genre(metrics))
    }
    if not means:
        return UNTESTED, UNMEASURED
    most = max(means, key=means.__getitem__)
    number = f"other languages {percent(sum(means.values()) / len(means))} on average in the gallery's runs, "
    number += f"{percent(means[most])} at most ({language_name(most)} trained)"
    comparison, status = summary(), YES if means[most] < _FORGETTING else NO
    if comparison:
        cells = {
            lang: x["methods"]["lape"]["changes"]["others, sentences"] for lang, x in comparison["languages"].items()
        }
        worst = max(cells, key=lambda lang: cells[lang]["value"])
        number += f"; {percent(cells[worst]['value'])} at the highest rate of the comparison ({language_name(worst)})"
        if status == YES and cells[worst]["value"] > _FORGETTING:
            status = f"{YES} at low rates"
    return status, number


def dynamics() -> tuple[str, str]:
    """States in how many languages `lape` has the lowest validation loss of all methods, a quarter into the run."""
    comparison = summary()
    if not comparison:
        return UNTESTED, UNMEASURED
    losses = {lang: _loss_after_a_quarter(lang, x["methods"]) for lang, x in comparison["languages"].items()}
    losses = {lang: by_method for lang, by_method in losses.items() if len(by_method) > 1 and "lape" in by_method}
    if not losses:
        return UNTESTED, UNMEASURED
    lowest = [lang for lang, by_method in losses.items() if min(by_method, key=by_method.__getitem__) == "lape"]
    number = (
        "after a quarter of the tokens, the neurons have the lowest validation loss of all methods in "
        f"{len(lowest)} of {len(losses)} languages"
    )
    return (YES if 2 * len(lowest) > len(losses) else NO), number


def _loss_after_a_quarter(lang: str, methods: Mapping) -> dict[str, float]:
    """Returns the validation loss of each method at its chosen rate, the mean over seeds, a quarter into the run."""
    losses = {}
    for name, method in methods.items():
        of_method = []
        for path in (RESULTS / "compare" / MODEL / lang).glob(f"{name}-lr*-seed*.json"):
            run = read_run(path)
            if run["settings"]["learning_rate"] == method["learning_rate"]:
                quarter = run["history"][-1]["tokens"] / 4
                later = (x for x in run["history"] if x["tokens"] >= quarter and "validation_loss" in x)
                of_method.append(next(later)["validation_loss"])
        if of_method:
            losses[name] = sum(of_method) / len(of_method)
    return losses


def alignment() -> tuple[str, str]:
    """States how the margin of right over wrong pairs changed in the last layer of the analysed run."""
    rows = [row for row in _output("tuned.table(base=base)") if "margin" in row]
    if not rows:
        return UNTESTED, UNMEASURED
    mean, low, high = (f"{float(x):+.4f}".replace("-", "−") for x in rows[-1][-3:])
    number = f"cosine of right minus wrong pairs, last layer: {mean} ({low} to {high}) in Yoruba"
    return (YES if float(rows[-1][-2]) > 0 else NO), number


def weight_changes() -> tuple[str, str]:
    """States how large the change of each projection is in the analysed run, relative to its base weights."""
    projections = ("gate", "up", "down")
    rows = {row[0]: list(map(float, row[1:])) for row in _output("change_by_depth(changes") if row[0] in projections}
    if len(rows) < len(projections):
        return UNTESTED, UNMEASURED
    sizes = {name: sum(row) / len(row) for name, row in rows.items()}
    number = (
        f"{join_words([f'{name} {size:.1f}%' for name, size in sizes.items()])} of the base norm in Yoruba (one run)"
    )
    return (YES if max(sizes.values()) > 1.5 * min(sizes.values()) else NO), number


def atlas() -> tuple[str, str]:
    """States for how many languages there are neuron sets."""
    selections = read("atlas/selections.json")
    if selections is None:
        return UNTESTED, UNMEASURED
    codes = selections["groups"]["all"].split()
    families = {get_language(code).lineage[0] for code in codes}
    return (YES if len(codes) > 100 else NO), f"{len(codes)} languages of {len(families)} families, one model"


def _output(code: str) -> list[list[str]]:
    """Returns the rows of the table that a cell of the executed analysis shows; the cell is identified by its code."""
    for cell in json.loads(_ANALYSIS.read_text(encoding="utf-8"))["cells"] if _ANALYSIS.is_file() else ():
        if code in "".join(cell["source"]):
            for output in cell.get("outputs", []):
                page = BeautifulSoup("".join(output.get("data", {}).get("text/html", [])), "html.parser")
                if rows := page.select("tbody tr"):
                    return [[x.get_text(strip=True) for x in row.select("th, td")] for row in rows]
    return []


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."
