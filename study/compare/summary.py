"""One small file of a comparison, for the pages that tell of it: summary.json, written from all results that lie there."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from ssetools.files import model_dir, provenance, write_json
from ssetools.languages import get_language
from study.compare.effects import across_languages, by_method, differences, effects
from study.compare.equal_gain import cost_of_gain
from study.compare.results import Findings, languages_found, read_findings
from study.compare.statements import against, against_on_average, best, judged, losses, spread_over_seeds

_UNITS = (
    "value, low, high: change of perplexity in percent (drift: nats per token), with its 95% interval; lower is better. "
    "units: how many windows or languages the interval is over"
)


def write_summary(results: str | Path, model: str) -> Path:
    """Writes `<results>/<model>/summary.json` from every run that lies there, and returns its path.

    It has, by language: the search; by method the rate, steps, sizes, changes with intervals and paired differences to
    `lape`; the methods that were scored at every rate; the ablations; the verdict in sentences; and what is missing.
    The means over languages, and a digest of the files that it was made of. A language without a run of `lape` is left out.
    """
    every = [read_findings(results, model, lang) for lang in languages_found(results, model)]
    found = {one.lang: one for one in every if "lape" in one.methods}
    pairs = {lang: one.pair for lang, one in found.items()}
    facts = {
        "units": _UNITS,
        "of": results_digest(model_dir(model, results)),
        "languages": {lang: _language(one) for lang, one in found.items()},
        "over_languages": _by_key(across_languages(pairs, to=None)),
        "over_languages_minus_lape": _by_key(judged(across_languages(pairs), over_languages=True)),
        "verdict_over_languages": against_on_average(found),
    }
    return write_json(model_dir(model, results) / "summary.json", {**facts, **provenance()})


def results_digest(folder: str | Path) -> str:
    """Returns a SHA-256 of a model's results, run by run: what is made of them keeps it, and shows its age."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*/*.json")):
        digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()


def _language(found: Findings) -> dict:
    moved = _by_key(effects(*found.pair, found.lang))
    paired = _by_key(judged(differences(*found.pair, found.lang)))
    methods = {}
    for method, mine in by_method(found.runs).items():
        methods[method] = {
            **_of_run(mine[0]),
            "seeds": [run["arm"]["seed"] for run in mine],
            "steps": [run["best_step"] for run in mine],
            "changes": moved[method],
            "minus_lape": paired.get(method),
        }
    return {
        "name": get_language(found.lang).name,
        "missing": found.missing,
        "base_perplexity": {
            name.removesuffix(".json"): {
                kind: {code: round(scores[kind][code]["perplexity"], 3) for code in (found.lang, "en")}
                for kind in scores
            }
            for name, scores in found.bases.items()
        },
        "search": found.search.to_dict("records"),
        "methods": methods,
        "traced": {method: [_at_rate(run, found) for run in runs] for method, runs in found.traced.items()},
        "ablations": [_ablation(run, found) for run in found.ablations],
        "verdict": {
            "best": best(found),
            "lape_against": against(found),
            "lape_loses": losses(found),
            "cost_of_gain": cost_of_gain(found),
            "over_seeds": spread_over_seeds(found),
        },
    }


def _of_run(run) -> dict:
    sizes = ("parameters", "optimizer_bytes", "adapter_bytes")
    return {
        "learning_rate": run["arm"]["learning_rate"],
        **{key: run[key] for key in sizes},
        "base": run["base"].removesuffix(".json"),
    }


def _at_rate(run, found) -> dict:
    return {"learning_rate": run["arm"]["learning_rate"], "changes": _changes(run, found)}


def _ablation(run, found) -> dict:
    return {**run["arm"], **_of_run(run), "best_step": run["best_step"], "changes": _changes(run, found)}


def _changes(run, found) -> dict:
    return _by_key(effects([run], found.bases, found.lang))[run["arm"]["method"]]


def _by_key(table) -> dict:
    """A table as dicts by method and measure; what is not a number is None, as JSON knows it."""
    found: dict[str, dict] = {}
    for row in table.itertuples():
        cell = {key: None if math.isnan(x := getattr(row, key)) else round(x, 4) for key in ("value", "low", "high")}
        cell |= {"units": row.units} | ({"verdict": row.verdict} if "verdict" in table.columns else {})
        found.setdefault(row.method, {})[row.measure] = cell
    return found
