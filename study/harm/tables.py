"""Tables of the study from its result files: gain, harm and drift by recipe, language and limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

from ssetools.files import read_json
from study.harm.recipes import Recipe
from study.harm.run import LIMITS, choose_scale, read_along, summary


def read_results(results: str | Path, model: str) -> pandas.DataFrame:
    """Reads all runs of a model, a row for each run and limit.

    Args:
        results: Folder of results.
        model: Folder name of the model inside it.

    Returns:
        DataFrame with `language`, `recipe` (`Recipe.label`), `text`, `seed`, `limit`, `scale`, `share` (percent of the
        weights), the test gain by genre and, as `gain`, on average over the unseen ones (nats per token x 100, lower is
        better), `validation` (the same on validation text, read off the curve), `neighbours`, `english` and `served`
        (relative change of the loss in percent), `worst` (language of the largest such change among the neighbours) and
        `worst_change`, `drift` (nats), `seconds`.
    """
    rows = [row | _facts(run) for run, base in read_runs(results, model) for row in _rows(run, base)]
    return pandas.DataFrame(rows)


def read_runs(results: str | Path, model: str) -> Iterable[tuple[dict, dict]]:
    """Reads all runs of a model, each with the test scores of its base."""
    for path in sorted(Path(results, model).glob("*/*.json")):
        if not path.name.startswith("base-"):
            run = read_json(path)
            yield run, read_json(path.parent / run["base"])


def gain_by_drift(run: Mapping, drifts: Sequence[float]) -> list[float]:
    """Returns the validation gain (nats per token x 100) at the best scale under each drift and the general limit."""
    scales = [choose_scale(run["curve"], {"drift": drift}) for drift in drifts]
    return [100 * float(x) for x in read_along(run["curve"], "target", scales)]


def _rows(run: Mapping, base: Mapping) -> Iterable[dict]:
    lang = run["language"]
    for limit in LIMITS:
        scale = run["chosen"][limit]
        row = {"limit": limit, "scale": scale, "drift": 0.0, "english": 0.0, "served": 0.0, "neighbours": 0.0}
        row |= {"worst": "", "worst_change": 0.0}
        row["validation"] = 100 * float(read_along(run["curve"], "target", [scale])[0])
        genres = dict.fromkeys(base["scores"], 0.0)
        if scale > 0:
            measured = run["test"][f"{scale:.2f}"]
            totals = summary(lang, base, measured["scores"])
            row["drift"] = measured["drift"]
            row |= {"english": 100 * totals["english"], "neighbours": 100 * totals["neighbours"]}
            row["served"] = 100 * float(np.mean(list(totals["served"].values())))
            worst = max(totals["each_neighbour"], key=totals["each_neighbour"].get)
            row |= {"worst": worst, "worst_change": 100 * totals["each_neighbour"][worst]}
            for genre in genres:
                change = sum(measured["scores"][genre][lang]) - sum(base["scores"][genre][lang])
                genres[genre] = 100 * change / sum(base["tokens"][genre][lang])
        unseen = [x for genre, x in genres.items() if genre != "same genre"]
        yield row | genres | {"gain": sum(unseen) / len(unseen)}


def recipe_of(run: Mapping) -> Recipe:
    """Returns the recipe that a result file records."""
    return Recipe(**run["recipe"] | {"projections": tuple(run["recipe"]["projections"])})


def _facts(run: Mapping) -> dict:
    recipe = recipe_of(run)
    facts = {"language": run["language"], "recipe": recipe.label, "text": recipe.text, "seed": recipe.seed}
    return facts | {"share": 100 * run["share"], "seconds": run["training"]["seconds"]}


def mean_over_languages(rows: pandas.DataFrame, measure: str = "gain") -> pandas.DataFrame:
    """Averages a measure over seeds, then over languages, with Student's 95% interval over languages.

    Returns:
        DataFrame by recipe and limit: `mean`, `low`, `high`, `languages`.
    """
    by_language = rows.groupby(["recipe", "limit", "language"])[measure].mean()
    return by_language.groupby(["recipe", "limit"]).apply(lambda x: pandas.Series(interval(x.to_numpy()))).unstack()


def differences(rows: pandas.DataFrame, first: str, measure: str = "gain") -> pandas.DataFrame:
    """Compares a recipe with every other on the languages that both have, paired by language.

    Returns:
        DataFrame by recipe and limit: `mean` of first minus other (negative: the first gains more), its 95% interval,
        `languages`.
    """
    table = rows.groupby(["limit", "language", "recipe"])[measure].mean().unstack("recipe")
    found = {}
    for other in table.columns.drop(first):
        for limit, part in (table[first] - table[other]).dropna().groupby("limit"):
            found[other, limit] = interval(part.to_numpy())
    return pandas.DataFrame(found).T


def interval(values: np.ndarray) -> dict[str, float]:
    """Returns the mean and Student's 95% interval; the interval is NaN for fewer than two values."""
    mean, n = float(values.mean()), len(values)
    low = high = math.nan
    if n > 1 and values.std() > 0:
        low, high = stats.t.interval(0.95, n - 1, mean, stats.sem(values))
    return {"mean": mean, "low": low, "high": high, "languages": n}
