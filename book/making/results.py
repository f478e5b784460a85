"""Reads the result files, and formats their numbers for a page."""

from __future__ import annotations

import json
from pathlib import Path

from ssetools.evaluation import intervals
from ssetools.languages import TARGET_LANGUAGES, get_language
from ssetools.report import percent_trained

BOOK = Path(__file__).resolve().parent.parent
RESULTS = BOOK / "results"
MODEL = "gemma-3-270m"
PAGE_WIDTH = 6.4
"""Width of a figure in inches, at which its lettering is as large as the page's text and legible on a phone."""


def read(name: str) -> dict | None:
    """Returns the content of `book/results/<name>`, or None if the file does not exist."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def metrics_by_language() -> dict[str, dict]:
    """Returns the metrics of the walk-through for the languages that have results, in the order of the languages."""
    metrics = {code: read(f"{code}.json") for code in TARGET_LANGUAGES}
    return {code: x for code, x in metrics.items() if x}


def languages_without_results() -> list[str]:
    """Returns the codes of the languages whose walk-through has not been run."""
    return [code for code in TARGET_LANGUAGES if code not in metrics_by_language()]


def unseen_genre(metrics: dict) -> str | None:
    """Returns the name of the genre that was not in the training text; None if there is none."""
    return next((genre for genre in metrics["summary"] if genre not in metrics["same_kind"]), None)


def percent(value: float | None) -> str:
    """Formats a change in percent, with a typographic minus: "−4.4%"."""
    return "" if value is None else intervals.percent(value).replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """Formats a number with its sign, with a typographic minus: "−4.4"."""
    return intervals.signed(value, digits).replace("-", "−")


def with_interval(change: dict | None, separator: str = " ", unit: str = "%") -> str:
    """Formats a change with its 95% interval, if it has one: "−4.4% (−5.1 to −3.7)".

    Args:
        change: `percent` or `mean`, `low` and `high`.
        separator: Text between the change and the interval; the interval itself is not broken over lines.
        unit: Of the change.
    """
    if change is None:
        return ""
    value = change["percent"] if "percent" in change else change["mean"]
    text = intervals.with_interval(value, change.get("low"), change.get("high"), unit=unit)
    return text.replace("-", "−").replace(" to ", "\u00a0to\u00a0").replace(" (", f"{separator}(")


def table_cell(change: dict | None, unit: str = "%") -> str:
    """Formats a change for a table, with the interval on a second line in small print, so that columns stay narrow."""
    text = with_interval(change, "<br><small>", unit)
    return f"{text}</small>" if "<small>" in text else text


def format_rate(value: float) -> str:
    """Formats a learning rate: "1e-4", "2.7e-3"."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def language_name(code: str) -> str:
    """Returns a language's English name."""
    return get_language(code).name


def trained_how() -> str:
    """States which languages of the gallery were trained by the present default, and which by an earlier one."""
    names: dict[str, list[str]] = {"specific": [], "lape": []}
    for code, metrics in metrics_by_language().items():
        names[metrics["adapter"].get("selection") or "lape"].append(language_name(code))
    defaults = {
        "specific": "Trained by the present default (specific neurons, 1% of the weights, scale chosen on validation text)",
        "lape": "Trained by an earlier default (LAPE neurons at full scale)",
    }
    return " ".join(f"{defaults[x]}: {join_words(of_default)}." for x, of_default in names.items() if of_default)


def join_words(words: list[str]) -> str:
    """Joins words as in a sentence: "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def substitutions() -> dict:
    """Returns the numbers that sentences of the pages use, as MyST substitutions: `{{ yo.sentences }}`.

    For each language with results: neurons, share, weights, tokens, rate, and the change on each genre in the target with
    its interval (`sentences`), in English (`sentences_english`) and in the other languages on average
    (`sentences_others`).
    """
    values: dict = {"languages_measured": str(len(metrics_by_language()))}
    for code, metrics in metrics_by_language().items():
        adapter = metrics["adapter"]
        values[code] = {
            "neurons": f"{adapter['neurons']:,}",
            "weights": f"{adapter['parameters']:,}",
            "share": f"{percent_trained(adapter):.2f}%",
            "tokens": f"{adapter['tokens']:,}",
            "rate": format_rate(adapter["settings"]["learning_rate"]),
        }
        for genre, changes in metrics["summary"].items():
            values[code][genre] = with_interval(changes["target"])
            values[code][f"{genre}_english"] = with_interval(changes["english"])
            values[code][f"{genre}_others"] = percent(changes["mean_of_others"])
    return values
