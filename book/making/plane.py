"""The data of the interactive plane: gain against harm of each method along its scale, or along its learning rate."""

from __future__ import annotations

import json
import math

import numpy as np

from making import harm
from making.compared import METHOD_TITLES, languages_in_full, summary
from making.results import MODEL, RESULTS, format_rate, join_words, language_name
from study.harm.run import read_along

_SCALES = np.linspace(0, 1, 21)
_LARGEST = {"drift": 0.15, "others": 15.0}
"""Harm up to which learning rates are shown: above, the model is unusable, and the rest of the plane too small to read."""
_PAGE = (
    '<div class="plane" role="group" aria-label="Interactive figure: gain against harm">\n'
    "<p>With JavaScript this is an interactive figure: choose a method and turn it up or down.</p>\n"
    '<script type="application/json">{data}</script>\n</div>\n'
)


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that the page includes."""
    data = along_scales() or along_rates()
    if data is None:
        return {"plane": "```{note}\nNo results yet: `python -m study.harm comparison` measures the plane.\n```\n"}
    return {"plane": _PAGE.format(data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))}


def along_scales() -> dict | None:
    """Returns each method of the study at equal harm along its scale, the mean over languages; None without results."""
    found = harm.summary()
    if found is None:
        return None
    methods = []
    for name, recipe in found["recipes"].items():
        files = [RESULTS / "harm" / MODEL / lang / f"{recipe['label']}_seed0.json" for lang in found["languages"]]
        curves = [_along(json.loads(file.read_text(encoding="utf-8"))["curve"]) for file in files]
        means = {key: np.mean([x[key] for x in curves], axis=0).round(4).tolist() for key in curves[0]}
        rows = [dict(zip(means, row, strict=True)) for row in zip(*means.values(), strict=True)]
        settings = [{"at": f"{scale:.2f}"} | row for scale, row in zip(_SCALES, rows, strict=True)]
        methods.append({"name": harm.TITLES[name], "settings": settings})
    harms = [
        {"key": "drift", "title": "drift from the base (nats)", "digits": 3},
        {"key": "served", "title": "loss of English and other well-served languages (%)", "digits": 1},
        {"key": "neighbours", "title": "loss of other under-served languages (%)", "digits": 1},
    ]
    gain = {"title": "loss of the trained language (nats per token × 100)", "digits": 1}
    return {"dial": "scale", "gain": gain, "harms": harms, "methods": methods, "note": _note(found["languages"])}


def _along(curve: list[dict]) -> dict[str, np.ndarray]:
    """Reads a run's measures at all scales as the study does, by a cubic through the measured points."""
    points = [{**point, "mean": sum(point["served"].values()) / max(1, len(point["served"]))} for point in curve]
    names = {"gain": ("target", 100), "drift": ("drift", 1), "served": ("mean", 100), "neighbours": ("neighbours", 100)}
    return {key: factor * read_along(points, name, _SCALES) for key, (name, factor) in names.items()}


def along_rates() -> dict | None:
    """Returns each method of the comparison at every learning rate it was tried at; None without results."""
    comparison = summary()
    languages = (
        [x for x in languages_in_full(comparison) if comparison["languages"][x]["by_rate"]] if comparison else []
    )
    if not languages:
        return None
    methods = []
    for name in comparison["languages"][languages[0]]["by_rate"]:
        by_rate: dict[float, list[dict]] = {}
        for lang in languages:
            for row in comparison["languages"][lang]["by_rate"][name]:
                by_rate.setdefault(row["learning_rate"], []).append(row["changes"])
        settings = [{"at": "0", "gain": 0.0, "drift": 0.0, "others": 0.0}]
        for rate, changes in sorted(by_rate.items()):
            row = {"drift": sum(x["drift"]["value"] for x in changes) / len(changes)}
            row |= {key: _mean(changes, f"{who}, sentences") for key, who in (("gain", "target"), ("others", "others"))}
            if all(row[key] <= most for key, most in _LARGEST.items()):
                settings.append({"at": format_rate(rate)} | {key: round(value, 4) for key, value in row.items()})
        methods.append({"name": METHOD_TITLES[name], "settings": settings})
    harms = [
        {"key": "drift", "title": "drift from the base (nats)", "digits": 3},
        {"key": "others", "title": "perplexity of the other languages (%)", "digits": 1},
    ]
    gain = {"title": "perplexity of the trained language (%)", "digits": 1}
    return {"dial": "learning rate", "gain": gain, "harms": harms, "methods": methods, "note": _note(languages)}


def _mean(changes: list[dict], measure: str) -> float:
    """Averages changes of perplexity in percent as logarithms."""
    return 100 * math.expm1(sum(math.log1p(x[measure]["value"] / 100) for x in changes) / len(changes))


def _note(languages: list[str]) -> str:
    return f"Mean over {join_words([language_name(x) for x in languages])}; one seed each, so small differences are within chance."
