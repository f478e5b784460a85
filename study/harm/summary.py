"""Summarises the study for the book: `python -m study.harm.summary` writes summary.json beside the results."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas

from ssetools.files import provenance, write_json
from ssetools.languages import TARGET_LANGUAGES
from ssetools.text.embedded import EMBEDDED_MODEL
from study.harm.recipes import COMPARED, NAMES, SEARCHED
from study.harm.run import LIMITS
from study.harm.tables import (
    differences,
    gain_by_drift,
    interval,
    mean_over_languages,
    read_results,
    read_runs,
    recipe_of,
)

DRIFTS = tuple(np.round(np.arange(0.005, 0.1001, 0.005), 3).tolist())
"""Limits of drift at which the curves of gain are read, in nats."""
MEASURES = ("gain", "drift", "neighbours", "english", "served", "scale", "validation")
_COMMON = 3  # languages that a recipe needs to be among the means
_CHOSEN_BY = "drift 0.03"


def summarise(results: str | Path, model: str) -> dict:
    """Returns the comparison in numbers; means are over the languages that every recipe of the comparison has.

    Args:
        results: Folder of results.
        model: Folder name of the model inside it.

    Returns:
        "languages": those of the means; "recipes": by name, in the order of `NAMES`, "label", "share" (percent of the
        weights), "seconds", "means" by limit and measure (mean, low, high, languages) and "curve" (mean gain under each of
        `DRIFTS` on validation text); "differences": gain of one recipe minus another's, by limit, paired by language;
        "by_language": by language, recipe and limit; "beyond_placebo": gain minus that of the same method on other
        languages' text; "winner": the selection of neurons with the largest mean gain on validation text of the searched
        languages at a drift of at most 0.03.
    """
    every = read_results(results, model)
    rows = every[(every["text"] == "own") & every["recipe"].isin(NAMES)]
    rows = rows.assign(recipe=rows["recipe"].map(NAMES))
    languages = common_languages(rows)
    compared = [name for name in NAMES.values() if set(languages) <= set(rows[rows["recipe"] == name]["language"])]
    same = rows[rows["language"].isin(languages) & rows["recipe"].isin(compared)]
    means = {measure: mean_over_languages(same, measure) for measure in MEASURES}
    curves, labels = _curves(results, model, languages), {name: label for label, name in NAMES.items()}
    found = {
        name: {
            "label": labels[name],
            "share": float(same[same["recipe"] == name]["share"].mean()),
            "seconds": float(same[same["recipe"] == name]["seconds"].median()),
            "seeds": sorted(int(x) for x in same[same["recipe"] == name]["seed"].unique()),
            "means": {limit: {m: _plain(means[m].loc[(name, limit)]) for m in MEASURES} for limit in LIMITS},
            "curve": curves[name],
        }
        for name in compared
    }
    return {
        "model": model,
        "languages": languages,
        "limits": LIMITS,
        "drifts": DRIFTS,
        "recipes": found,
        "differences": {name: _by_other(differences(same, name)) for name in compared},
        "by_language": _by_language(rows),
        "beyond_placebo": _beyond_placebo(every, rows),
        "winner": _winner(same, compared),
        "runs": int(every.groupby(["language", "recipe", "text", "seed"]).ngroups),
        **provenance(),
    }


def common_languages(rows: pandas.DataFrame) -> list[str]:
    """Returns the languages that all recipes with at least three languages have, in the order of the languages."""
    sets = [set(part["language"]) for _, part in rows.groupby("recipe") if part["language"].nunique() >= _COMMON]
    common = set.intersection(*sets) if sets else set()
    return [lang for lang in TARGET_LANGUAGES if lang in common]


def _curves(results: str | Path, model: str, languages: list[str]) -> dict[str, list[float]]:
    """Mean gain over languages under each drift, by recipe; runs of several seeds are averaged first."""
    gains: dict[str, dict[str, list]] = {}
    for run, _ in read_runs(results, model):
        recipe = recipe_of(run)
        if recipe.text == "own" and recipe.label in NAMES and run["language"] in languages:
            by_language = gains.setdefault(NAMES[recipe.label], {}).setdefault(run["language"], [])
            by_language.append(gain_by_drift(run, DRIFTS))
    return {
        name: [round(float(x), 3) for x in np.mean([np.mean(x, axis=0) for x in by_language.values()], axis=0)]
        for name, by_language in gains.items()
    }


def _by_other(table: pandas.DataFrame) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for key, row in table.iterrows():
        other, limit = key  # pyright: ignore[reportGeneralTypeIssues]
        found.setdefault(other, {})[limit] = _plain(row)
    return found


def _by_language(rows: pandas.DataFrame) -> dict[str, dict]:
    found: dict[str, dict] = {}
    numbers = rows.groupby(["language", "recipe", "limit"])[
        [*MEASURES, "sib200", "ntrex", "same genre", "worst_change"]
    ]
    worst = rows.groupby(["language", "recipe", "limit"])["worst"].first()
    for key, row in numbers.mean().iterrows():
        lang, name, limit = key  # pyright: ignore[reportGeneralTypeIssues]
        cell = {measure: round(float(x), 4) for measure, x in row.items()} | {"worst": worst[key]}
        found.setdefault(lang, {}).setdefault(name, {})[limit] = cell
    return {lang: found[lang] for lang in TARGET_LANGUAGES if lang in found}


def _beyond_placebo(every: pandas.DataFrame, rows: pandas.DataFrame) -> dict[str, dict]:
    placebo = every[(every["text"] == "placebo") & every["recipe"].isin(NAMES)]
    placebo = placebo.assign(recipe=placebo["recipe"].map(NAMES))
    keys = ["recipe", "limit", "language"]
    beyond = (rows.groupby(keys)["gain"].mean() - placebo.groupby(keys)["gain"].mean()).dropna()
    found: dict[str, dict] = {}
    for key, part in beyond.groupby(["recipe", "limit"]):
        name, limit = key  # pyright: ignore[reportGeneralTypeIssues]
        found.setdefault(name, {})[limit] = _plain(pandas.Series(interval(part.to_numpy())))
    return found


def _winner(rows: pandas.DataFrame, compared: list[str]) -> dict | None:
    within = {NAMES[recipe.label] for recipe in COMPARED if recipe.method == "subnetwork"} & set(compared)
    part = rows[rows["recipe"].isin(within) & rows["language"].isin(SEARCHED) & (rows["limit"] == _CHOSEN_BY)]
    if part.empty:
        return None
    gains = part.groupby(["recipe", "language"])["validation"].mean().groupby("recipe").mean().sort_values()
    return {
        "recipe": gains.index[0],
        "limit": _CHOSEN_BY,
        "validation": {x: round(float(y), 3) for x, y in gains.items()},
    }


def _plain(row: pandas.Series) -> dict:
    return {x: int(y) if x == "languages" else None if np.isnan(y) else round(float(y), 4) for x, y in row.items()}


def main() -> None:
    """Writes the summary of the results of one model."""
    parser = argparse.ArgumentParser(prog="python -m study.harm.summary", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="folder name of the model")
    parser.add_argument("--results", default="book/results/harm", help="folder of results")
    arguments = parser.parse_args()
    path = Path(arguments.results, arguments.model, "summary.json")
    write_json(path, summarise(arguments.results, arguments.model))
    print(f"{path} is written.")


if __name__ == "__main__":
    main()
