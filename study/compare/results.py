"""What lies in a folder of results: a comparison's runs by language, what is missing yet, and what a step costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from ssetools.files import model_dir, read_json
from ssetools.languages import get_language
from study.compare.comparison import TRACED
from study.compare.effects import KINDS, by_method
from study.compare.runs import METHODS, SEEDS, Arm, ablations_of

CONTROL = "random"
_SEARCH = ["method", "learning_rate", "best_step", "validation_loss", "chosen", "at_edge"]


@dataclass(frozen=True)
class Findings:
    """The results of one language, as far as they are there.

    Attributes:
        lang: Language code.
        runs: Scored runs of the comparison, one for each method and seed, at the method's chosen rate.
        bases: Scores of the bases by file name, as the runs name them.
        search: A row for each rate tried: method, learning_rate, best_step, validation_loss, `chosen`, and `at_edge`
            of the grid. Empty for a language that took its rates from others.
        traced: By method of `TRACED`, scored runs of the seed of the search at two rates or more, lowest first. Any other
            method may be scored at two rates as well, when its choice has moved: that is no line.
        ablations: Scored runs of `lape` and its control at the rate chosen for `lape`, seed 0, which differ in one thing
            from the comparison's own (that are among them).
        missing: A sentence for what is not there yet, with the command that makes it.
    """

    lang: str
    runs: list[dict]
    bases: dict[str, dict]
    search: pandas.DataFrame
    traced: dict[str, list[dict]]
    ablations: list[dict]
    missing: list[str]

    @property
    def pair(self) -> tuple[list[dict], dict[str, dict]]:
        """The runs and the bases' scores, as `effects.across_languages` takes them."""
        return self.runs, self.bases

    @property
    def methods(self) -> list[str]:
        """Methods with a scored run, in the order of `METHODS`."""
        return [method for method in METHODS if method in by_method(self.runs)]


def read_findings(results: str | Path, model: str, lang: str) -> Findings:
    """Reads the results of one language; nothing is run.

    Args:
        results: Folder of results, of all models.
        model: Embedded name, hub id or local folder.
        lang: Language code.

    Returns:
        What is there; without any run of it, all is empty but `missing`.

    Raises:
        ValueError: If runs were made by different protocols.
    """
    folder = model_dir(model, results) / get_language(lang).code
    every = [read_json(path) for path in sorted(folder.glob("*-seed*.json"))]
    if len({json.dumps(run["protocol"], sort_keys=True) for run in every}) > 1:
        raise ValueError(f"The runs in {folder} were made by different protocols: delete the old ones, and run again.")
    bases = {
        path.name: read_json(path)["scores"] for path in sorted(folder.glob("base-*.json"), key=lambda path: path.stem)
    }
    arms = [Arm(**run["arm"]) for run in every]
    own = [run for run, arm in zip(every, arms, strict=True) if arm == Arm(arm.method, arm.learning_rate, arm.seed)]
    rates = {method: _chosen(mine) for method, mine in by_method(own).items()}
    runs = [run for run in own if "after" in run and run["arm"]["learning_rate"] == rates[run["arm"]["method"]]]
    order = list(METHODS)
    runs.sort(key=lambda run: (order.index(run["arm"]["method"]), run["arm"]["seed"]))
    wanted = [arm for method in ("lape", CONTROL) if "lape" in rates for arm in ablations_of(method, rates["lape"])]
    scored = {arm: run for run, arm in zip(every, arms, strict=True) if "after" in run}
    ablated = [scored[arm] for arm in wanted if arm in scored]
    if all(run in own for run in ablated):
        ablated = []
    search = _search(own, rates)
    traced = _traced([run for run in own if "after" in run])
    missing = _missing(lang, runs, search, traced, [arm for arm in wanted if arm not in scored])
    return Findings(lang, runs, bases, search, traced, ablated, missing)


def comparable(every: Iterable[Findings]) -> dict[str, Findings]:
    """Returns, by language, the results in which `lape` and another method are scored.

    Raises:
        ValueError: If there is none.
    """
    every = list(every)
    found = {one.lang: one for one in every if "lape" in one.methods and len(one.methods) > 1}
    if not found:
        raise ValueError("There is nothing to compare yet: " + " ".join(line for one in every for line in one.missing))
    return found


def languages_found(results: str | Path, model: str) -> list[str]:
    """Returns the languages that have a folder of results, in alphabetical order of their codes."""
    return sorted(path.parent.name for path in model_dir(model, results).glob("*/base-*.json"))


def _chosen(runs: Sequence[Mapping]) -> float:
    """The rate of one method's runs: of a whole grid the best on validation text, else the one that most were scored at."""
    loss, scored = {}, {}
    for run in runs:
        rate = run["arm"]["learning_rate"]
        scored[rate] = scored.get(rate, 0) + ("after" in run)
        if run["arm"]["seed"] == 0:
            loss[rate] = run["validation_loss"]
    if set(METHODS[runs[0]["arm"]["method"]].search) <= set(loss):
        return min(METHODS[runs[0]["arm"]["method"]].search, key=loss.get)
    return max(scored, key=lambda rate: (scored[rate], -loss.get(rate, float("inf"))))


def _search(runs, rates) -> pandas.DataFrame:
    rows = []
    for method in METHODS:
        grid = METHODS[method].search
        mine = [run for run in runs if run["arm"]["method"] == method and run["arm"]["seed"] == 0]
        for run in sorted(mine, key=lambda run: run["arm"]["learning_rate"]) if len(mine) > 1 else []:
            rate = run["arm"]["learning_rate"]
            chosen = rate == rates[method]
            rows.append(
                [method, rate, run["best_step"], run["validation_loss"], chosen, chosen and rate in (grid[0], grid[-1])]
            )
    return pandas.DataFrame(rows, columns=_SEARCH)


def _traced(scored) -> dict[str, list[dict]]:
    first = [run for run in scored if run["arm"]["seed"] == 0]
    found = by_method(sorted(first, key=lambda run: run["arm"]["learning_rate"]))
    return {method: found[method] for method in METHODS if method in TRACED and len(found.get(method, [])) > 1}


def _missing(lang, runs, search, traced, ablations) -> list[str]:
    name = get_language(lang).name
    if not runs:
        return [f"{name}: no scored run. `python -m study.compare {lang}` makes all, in about two hours on two cores."]
    searched = not search.empty
    seeds = set(SEEDS) if searched else {run["arm"]["seed"] for run in runs}
    have = {method: {run["arm"]["seed"] for run in mine} for method, mine in by_method(runs).items()}
    lacks = [
        method if method not in have else f"{method} (seeds {_listed(seeds - have[method])})"
        for method in METHODS
        if seeds - have.get(method, set())
    ]
    tried = {(row.method, row.learning_rate) for row in search.itertuples()}
    untried = [
        f"{method} {rate:g}"
        for method in METHODS
        for rate in METHODS[method].search
        if searched and (method, rate) not in tried and method in have
    ]
    short = [x for x in TRACED if searched and x in have and len(traced.get(x, [])) < len(METHODS[x].search)]
    said = []
    if short:
        said.append(f"not scored at every rate: {', '.join(short)}")
    if lacks:
        said.append(f"not scored: {', '.join(lacks)}")
    if untried:
        said.append(f"rates not tried: {', '.join(untried)}")
    goes_on = f"python -m study.compare {lang}" if searched else "make compare"
    sentences = [f"{name} is not complete, {'; '.join(said)}. `{goes_on}` goes on."] if said else []
    if searched and ablations:
        makes = f"`python -m study.compare {lang} --ablations` makes those for which it has neurons."
        sentences.append(f"{name} lacks {len(ablations)} ablations. {makes}")
    return sentences


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(x) for x in sorted(numbers))


def step_costs(path: str | Path, model: str) -> pandas.DataFrame:
    """Reads what a step of each method took in the benchmark, where all were measured in turn on a quiet machine.

    Args:
        path: The file of `make bench`.
        model: Embedded name, hub id or local folder.

    Returns:
        A row per method: seconds_per_token, seconds_per_step, peak_gib. "random-uniform" trains as many numbers as
        "random" and takes its row. Empty, with a sentence printed, when the file or the model in it is missing.
    """
    columns = ["seconds_per_token", "seconds_per_step", "peak_gib"]
    path = Path(path)
    if not path.is_file():
        print(f"There is no {path}: time and memory of a step are left out. `make bench` measures them.")
        return pandas.DataFrame(columns=columns)
    measured = read_json(path)
    name, rows = model_dir(model, "").name, {}
    for row in measured["rows"]:
        method = row["variant"]
        if row["model"] == name and method in METHODS and (row["bits"] == 8) == METHODS[method].on_8bit:
            rows[method] = [row["seconds"] / measured["tokens_per_step"], row["seconds"], row["peak_gib"]]
    if not rows:
        print(f"{path} has no {name}: time and memory of a step are left out.")
    elif "random" in rows:
        rows["random-uniform"] = rows["random"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)


def base_perplexities(found: Mapping[str, Findings]) -> pandas.DataFrame:
    """Tabulates the perplexity of the bases in each language, and the tokens that all is measured on.

    Returns:
        Rows language and kind of text; a column for each base, then the tokens of the language, of English, and the
        median of those of each other language.
    """
    rows = {}
    for lang, one in found.items():
        for kind in KINDS:
            texts = {name.removesuffix(".json"): base[kind] for name, base in one.bases.items()}
            row = {name: round(text[lang]["perplexity"], 2) for name, text in texts.items()}
            tokens = {code: sum(score["window_tokens"]) for code, score in next(iter(texts.values())).items()}
            each = statistics.median_low(n for code, n in tokens.items() if code not in (lang, "en"))
            row |= {"tokens": tokens[lang], "English": tokens["en"], "each other language": each}
            rows[get_language(lang).name, kind] = row
    return pandas.DataFrame.from_dict(rows, orient="index").fillna("")


def costs(found: Findings, steps: pandas.DataFrame) -> pandas.DataFrame:
    """Tabulates what each method takes.

    Args:
        found: A language's results.
        steps: From `step_costs`.

    Returns:
        A row per method: numbers trained, rate chosen, steps kept (median over seeds), the optimiser's state and the
        adapter's file in MB, and from the benchmark peak memory in GiB and seconds of a step.
    """
    rows = {}
    for method, mine in by_method(found.runs).items():
        first, kept = mine[0], sorted(run["best_step"] for run in mine)
        rows[method] = {
            "numbers trained": first["parameters"],
            "rate": first["arm"]["learning_rate"],
            "steps kept": kept[len(kept) // 2],
            "optimiser (MB)": round(first["optimizer_bytes"] / 1e6, 1),
            "adapter (MB)": round(first["adapter_bytes"] / 1e6, 1),
        }
        if method in steps.index:
            rows[method] |= {"peak (GiB)": steps.peak_gib[method], "seconds per step": steps.seconds_per_step[method]}
    return pandas.DataFrame.from_dict(rows, orient="index")
