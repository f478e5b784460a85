"""Writes summary.json, the part of a comparison that the pages of the book show."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import pandas

from ssetools.files import model_dir, provenance, write_json
from ssetools.languages import get_language
from study.compare.effects import by_method, changes, mean_over_languages
from study.compare.equal_gain import describe_drift_at_equal_gain
from study.compare.results import LanguageResults, languages_with_results, read_results
from study.compare.statements import add_verdict, describe_losses, differences_with_verdict

_UNITS = (
    "value, low, high: change of perplexity in percent (drift: nats per token) with its 95% interval; lower is better. "
    "units: number of windows or languages over which the interval is computed"
)


def write_summary(results: str | Path, model: str) -> Path:
    """Writes `<results>/<model>/summary.json` from all existing runs, and returns its path.

    By language: the search; by method the rate, steps, sizes, changes with intervals and paired differences from `lape`;
    the methods that were scored at every rate; the ablations; sentences; and what is missing. Then the means over
    languages, and a digest of the files from which it was made. A language without a run of `lape` is left out.
    """
    languages = [read_results(results, model, lang) for lang in languages_with_results(results, model)]
    by_language = {x.lang: x for x in languages if "lape" in x.methods}
    runs_and_bases = {lang: x.runs_and_bases for lang, x in by_language.items()}
    summary = {
        "units": _UNITS,
        "of": results_digest(model_dir(model, results)),
        "languages": {lang: _summarise_language(x) for lang, x in by_language.items()},
        "over_languages": _cells(mean_over_languages(runs_and_bases, reference=None)),
        "over_languages_minus_lape": _cells(add_verdict(mean_over_languages(runs_and_bases), over_languages=True)),
    }
    return write_json(model_dir(model, results) / "summary.json", {**summary, **provenance()})


def results_digest(folder: str | Path) -> str:
    """Returns a SHA-256 of a model's result files; what is made from them records it, which shows when it is out of date."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*/*.json")):
        digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()


def _summarise_language(results: LanguageResults) -> dict:
    by_measure = _cells(changes(*results.runs_and_bases, results.lang))
    differences = _cells(differences_with_verdict(results))
    search = results.search.replace(math.inf, None)  # a rate that diverged
    return {
        "name": get_language(results.lang).name,
        "missing": results.missing,
        "base_perplexity": {
            name.removesuffix(".json"): {
                genre: {code: round(scores[genre][code]["perplexity"], 3) for code in (results.lang, "en")}
                for genre in scores
            }
            for name, scores in results.bases.items()
        },
        "search": search.to_dict("records"),
        "methods": {
            method: {
                **_rate_and_sizes(runs[0]),
                "seeds": [run["settings"]["seed"] for run in runs],
                "steps": [run["best_step"] for run in runs],
                "changes": by_measure[method],
                "minus_lape": differences.get(method),
            }
            for method, runs in by_method(results.runs).items()
        },
        "by_rate": {
            method: [
                {"learning_rate": run["settings"]["learning_rate"], "changes": _changes_of_run(run, results)}
                for run in runs
            ]
            for method, runs in results.by_rate.items()
        },
        "ablations": [
            {
                **run["settings"],
                **_rate_and_sizes(run),
                "best_step": run["best_step"],
                "changes": _changes_of_run(run, results),
            }
            for run in results.ablations
        ],
        "sentences": {
            "lape_loses": describe_losses(results),
            "drift_at_equal_gain": describe_drift_at_equal_gain(results),
        },
    }


def _rate_and_sizes(run: Mapping) -> dict:
    return {
        "learning_rate": run["settings"]["learning_rate"],
        **{key: run[key] for key in ("parameters", "optimizer_bytes", "adapter_bytes")},
        "base": run["base"].removesuffix(".json"),
    }


def _changes_of_run(run: Mapping, results: LanguageResults) -> dict:
    return _cells(changes([run], results.bases, results.lang))[run["settings"]["method"]]


def _cells(table: pandas.DataFrame) -> dict[str, dict]:
    """Returns a table as dicts by method and measure; NaN, which JSON does not have, becomes None."""
    cells: dict[str, dict] = {}
    for row in table.itertuples():
        cell = {key: None if math.isnan(x := getattr(row, key)) else round(x, 4) for key in ("value", "low", "high")}
        cell |= {"units": row.units} | ({"verdict": row.verdict} if "verdict" in table.columns else {})
        cells.setdefault(row.method, {})[row.measure] = cell
    return cells
