"""Reads a folder of results: the runs of each language, what is missing, and what a training step costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from ssetools.errors import InvalidInput
from ssetools.files import model_dir, read_json
from ssetools.languages import get_language
from study.compare.comparison import SCORED_AT_EVERY_RATE, validation_loss
from study.compare.effects import GENRES, by_method
from study.compare.runs import METHODS, SEARCH, SEEDS, RunSettings, ablation_settings, read_run

CONTROL = "random"
_SEARCH_COLUMNS = ["method", "learning_rate", "best_step", "validation_loss", "chosen", "at_edge"]


@dataclass(frozen=True)
class LanguageResults:
    """The results of one language, as far as they exist.

    Attributes:
        lang: Language code.
        runs: Scored runs at each method's chosen rate, one per method and seed.
        bases: Scores of the base models, by the file name to which the runs refer.
        search: A row for each rate tried: method, learning_rate, best_step, validation_loss, `chosen`, and `at_edge` (the
            chosen rate is the lowest or highest of the grid). Empty for a language that uses the rates of others.
        by_rate: By method of `SCORED_AT_EVERY_RATE`, scored runs of the first seed at two rates or more, in ascending
            order of rate.
        ablations: Scored runs of `lape` and its control at the rate chosen for `lape`, with seed 0, that differ from the
            default settings in at most one field.
        missing: A sentence for each part that has no results, with the command that makes them.
    """

    lang: str
    runs: list[dict]
    bases: dict[str, dict]
    search: pandas.DataFrame
    by_rate: dict[str, list[dict]]
    ablations: list[dict]
    missing: list[str]

    @property
    def runs_and_bases(self) -> tuple[list[dict], dict[str, dict]]:
        """The runs and the scores of the base models, the first arguments of the functions in `effects`."""
        return self.runs, self.bases

    @property
    def methods(self) -> list[str]:
        """Methods with a scored run, in the order of `METHODS`."""
        return [method for method in METHODS if method in by_method(self.runs)]


def read_results(results: str | Path, model: str, lang: str) -> LanguageResults:
    """Reads the results of one language, without running anything.

    Args:
        results: Folder of results, of all models.
        model: Embedded name, hub id or local folder.
        lang: Language code.

    Returns:
        The results; without any run, everything is empty except `missing`.

    Raises:
        ValueError: If runs were made with different protocols.
    """
    folder = model_dir(model, results) / get_language(lang).code
    all_runs = [read_run(path) for path in sorted(folder.glob("*-seed*.json"))]
    if len({json.dumps(run["protocol"], sort_keys=True) for run in all_runs}) > 1:
        raise InvalidInput(
            f"The runs in {folder} were made with different protocols: delete the old ones, and run again."
        )
    bases = {
        path.name: read_json(path)["scores"] for path in sorted(folder.glob("base-*.json"), key=lambda path: path.stem)
    }
    by_settings = {RunSettings(**run["settings"]): run for run in all_runs}
    default = [run for x, run in by_settings.items() if x == RunSettings(x.method, x.learning_rate, x.seed)]
    rates = {method: _chosen_rate(method, runs) for method, runs in by_method(default).items()}
    scored = [run for run in default if "after" in run]
    runs = [run for run in scored if run["settings"]["learning_rate"] == rates[run["settings"]["method"]]]
    order = list(METHODS)
    runs.sort(key=lambda run: (order.index(run["settings"]["method"]), run["settings"]["seed"]))
    wanted = [x for method in ("lape", CONTROL) if rates.get("lape") for x in ablation_settings(method, rates["lape"])]
    ablations = [by_settings[x] for x in wanted if "after" in by_settings.get(x, {})]
    if all(run in default for run in ablations):
        ablations = []
    search = _search_table(default, rates)
    by_rate = _runs_by_rate(scored)
    num_missing = sum("after" not in by_settings.get(x, {}) for x in wanted)
    missing = _missing(lang, runs, search, by_rate, num_missing)
    return LanguageResults(lang, runs, bases, search, by_rate, ablations, missing)


def comparable(results: Iterable[LanguageResults]) -> dict[str, LanguageResults]:
    """Returns, by language, the results in which `lape` and another method are scored.

    Raises:
        ValueError: If there are none.
    """
    results = list(results)
    by_language = {x.lang: x for x in results if "lape" in x.methods and len(x.methods) > 1}
    if not by_language:
        raise InvalidInput("There is nothing to compare yet: " + " ".join(line for x in results for line in x.missing))
    return by_language


def languages_with_results(results: str | Path, model: str) -> list[str]:
    """Returns the languages that have a folder of results, in alphabetical order of their codes."""
    return sorted({path.parent.name for path in model_dir(model, results).glob("*/base-*.json")})


def _chosen_rate(method: str, runs: Sequence[Mapping]) -> float | None:
    """Returns the rate of a method's runs: the best on validation text if the whole grid was tried, otherwise the one at
    which most runs were scored; None if every run diverged."""
    loss, num_scored = {}, {}
    for run in runs:
        rate = run["settings"]["learning_rate"]
        num_scored[rate] = num_scored.get(rate, 0) + ("after" in run)
        if run["settings"]["seed"] == SEEDS[0]:
            loss[rate] = validation_loss(run)
    if loss and min(loss.values()) == math.inf:
        return None
    if set(SEARCH[method]) <= set(loss):
        return min(SEARCH[method], key=loss.__getitem__)
    return max(num_scored, key=lambda rate: (num_scored[rate], -loss.get(rate, math.inf)))


def _search_table(runs: Sequence[Mapping], rates: Mapping[str, float | None]) -> pandas.DataFrame:
    rows = []
    first_seed = [run for run in runs if run["settings"]["seed"] == SEEDS[0]]
    for method in METHODS:
        grid = SEARCH[method]
        tried = {run["settings"]["learning_rate"]: run for run in first_seed if run["settings"]["method"] == method}
        for rate, run in sorted(tried.items()) if len(tried) > 1 else []:
            chosen = rate == rates[method]
            at_edge = chosen and rate in (grid[0], grid[-1])
            rows.append([method, rate, run["best_step"], validation_loss(run), chosen, at_edge])
    return pandas.DataFrame(rows, columns=_SEARCH_COLUMNS)


def _runs_by_rate(scored: Sequence[Mapping]) -> dict[str, list[dict]]:
    # Other methods may also be scored at two rates, because their chosen rate has changed between runs.
    first_seed = [run for run in scored if run["settings"]["seed"] == SEEDS[0]]
    groups = by_method(sorted(first_seed, key=lambda run: run["settings"]["learning_rate"]))
    return {x: groups[x] for x in METHODS if x in SCORED_AT_EVERY_RATE and len(groups.get(x, [])) > 1}


def _missing(
    lang: str,
    runs: Sequence[Mapping],
    search: pandas.DataFrame,
    by_rate: Mapping[str, Sequence[Mapping]],
    num_ablations: int,
) -> list[str]:
    name = get_language(lang).name
    if not runs:
        return [f"{name}: no scored run. `python -m study.compare {lang}` makes all, in about two hours on two cores."]
    searched = not search.empty
    expected = set(SEEDS) if searched else {run["settings"]["seed"] for run in runs}
    seeds = {method: {run["settings"]["seed"] for run in group} for method, group in by_method(runs).items()}
    unscored = [
        f"{method} (seeds {', '.join(map(str, sorted(expected - seeds[method])))})" if method in seeds else method
        for method in METHODS
        if expected - seeds.get(method, set())
    ]
    loss = {(row.method, row.learning_rate): row.validation_loss for row in search.itertuples()}
    grids = [(method, rate) for method in METHODS if method in seeds and searched for rate in SEARCH[method]]
    untried = [f"{method} {rate:g}" for method, rate in grids if (method, rate) not in loss]
    to_score: dict[str, int] = {}
    for method, rate in grids:
        if method in SCORED_AT_EVERY_RATE:
            to_score[method] = to_score.get(method, 0) + (loss.get((method, rate)) != math.inf)
    partly = [method for method, rates in to_score.items() if len(by_rate.get(method, [])) < rates]
    parts = [
        f"{label}: {', '.join(names)}"
        for label, names in (
            ("not scored at every rate", partly),
            ("not scored", unscored),
            ("rates not tried", untried),
        )
        if names
    ]
    command = f"python -m study.compare {lang}" if searched else "make compare"
    sentences = [f"{name} is not complete, {'; '.join(parts)}. `{command}` resumes it."] if parts else []
    if searched and num_ablations:
        sentences.append(
            f"{name} lacks {num_ablations} ablations. `python -m study.compare {lang} --ablations` makes those in which the "
            "language has neurons."
        )
    return sentences


def step_costs(path: str | Path, model: str) -> pandas.DataFrame:
    """Reads the time and memory of a training step from the benchmark, which runs the methods in turn on an idle machine.

    Args:
        path: The file of `make bench`.
        model: Embedded name, hub id or local folder.

    Returns:
        A row per method: seconds_per_token, seconds_per_step, peak_gib. "random-uniform" trains as many parameters as
        "random" and has the same row. Empty, with a sentence printed, when the file or the model in it is missing.
    """
    columns = ["seconds_per_token", "seconds_per_step", "peak_gib"]
    path = Path(path)
    if not path.is_file():
        print(f"There is no {path}: time and memory of a step are not shown. `make bench` measures them.")
        return pandas.DataFrame(columns=columns)
    benchmark = read_json(path)
    name, rows = model_dir(model, "").name, {}
    for row in benchmark["rows"]:
        method = row["variant"]
        if row["model"] == name and method in METHODS and (row["bits"] == 8) == METHODS[method].on_8bit:
            rows[method] = [row["seconds"] / benchmark["tokens_per_step"], row["seconds"], row["peak_gib"]]
    if not rows:
        print(f"{path} has no rows of {name}: time and memory of a step are not shown.")
    elif "random" in rows:
        rows["random-uniform"] = rows["random"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)


def base_perplexities(results: Mapping[str, LanguageResults]) -> pandas.DataFrame:
    """Tabulates the perplexity of the base models in each language, and the number of test tokens.

    Returns:
        Rows are language and genre. Columns are the base models, then the tokens of the language, of English, and the
        median of the other languages.
    """
    rows = {}
    for lang, of_language in results.items():
        for genre in GENRES:
            scores = {name.removesuffix(".json"): base[genre] for name, base in of_language.bases.items()}
            row = {name: round(score[lang]["perplexity"], 2) for name, score in scores.items()}
            tokens = {code: sum(score["window_tokens"]) for code, score in next(iter(scores.values())).items()}
            median = statistics.median_low(n for code, n in tokens.items() if code not in (lang, "en"))
            row |= {"tokens": tokens[lang], "English": tokens["en"], "each other language": median}
            rows[get_language(lang).name, genre] = row
    return pandas.DataFrame.from_dict(rows, orient="index").fillna("")


def costs(results: LanguageResults, steps: pandas.DataFrame) -> pandas.DataFrame:
    """Tabulates the size, time and memory of each method.

    Args:
        results: Results of one language.
        steps: From `step_costs`.

    Returns:
        A row per method: trained parameters, chosen rate, steps trained (median over seeds), optimiser state and adapter
        file in MB, and from the benchmark the peak memory in GiB and the seconds of a step.
    """
    rows = {}
    for method, runs in by_method(results.runs).items():
        run = runs[0]
        rows[method] = {
            "parameters": run["parameters"],
            "rate": run["settings"]["learning_rate"],
            "steps": statistics.median_high(run["best_step"] for run in runs),
            "optimiser (MB)": round(run["optimizer_bytes"] / 1e6, 1),
            "adapter (MB)": round(run["adapter_bytes"] / 1e6, 1),
        }
        if method in steps.index:
            rows[method] |= {"peak (GiB)": steps.peak_gib[method], "seconds per step": steps.seconds_per_step[method]}
    return pandas.DataFrame.from_dict(rows, orient="index")
