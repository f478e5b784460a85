"""What the result files hold, and how their numbers are written on a page."""

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
"""Inches of a figure: its lettering is as large as the page's text, and can still be read on a phone."""


def read(name: str) -> dict | None:
    """Returns the content of `book/results/<name>`, or None when nothing has been measured yet."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def measured() -> dict[str, dict]:
    """Returns the walk-through's metrics by language code, in the order of the languages; only those that are there."""
    found = {code: read(f"{code}.json") for code in TARGET_LANGUAGES}
    return {code: metrics for code, metrics in found.items() if metrics}


def missing() -> list[str]:
    """Returns the codes of the languages whose walk-through has not been run."""
    return [code for code in TARGET_LANGUAGES if code not in measured()]


def other_kind(metrics: dict) -> str | None:
    """Returns the name of the kind of text that training never saw."""
    return next((kind for kind in metrics["summary"] if kind not in metrics["same_kind"]), None)


def percent(value: float | None) -> str:
    """Writes a change in percent, with a typographic minus: "−4.4%"."""
    return "" if value is None else intervals.percent(value).replace("-", "−")


def with_interval(moved: dict | None, between: str = " ") -> str:
    """Writes a change in percent with its 95% interval, where there is one: "−4.4% (−5.1 to −3.7)".

    Args:
        moved: `percent`, `low` and `high`.
        between: What stands between the change and the interval, which itself is not broken over lines.
    """
    if moved is None:
        return ""
    text = intervals.with_interval(moved["percent"], moved.get("low"), moved.get("high"))
    return text.replace("-", "−").replace(" to ", "\u00a0to\u00a0").replace(" (", f"{between}(")


def in_cell(moved: dict | None) -> str:
    """Writes a change for a table: the interval on a line of its own, small, so that many columns fit beside each other."""
    text = with_interval(moved, "<br><small>")
    return f"{text}</small>" if "<small>" in text else text


def rate(value: float) -> str:
    """Writes a learning rate: "1e-4", "2.7e-3"."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def name_of(code: str) -> str:
    """Returns a language's English name."""
    return get_language(code).name


def listed(words: list[str], last: str = "and") -> str:
    """Joins words as a sentence does: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def numbers() -> dict:
    """Returns the numbers that sentences use, as MyST substitutions: `{{ yo.sentences }}`.

    Per measured language: neurons, share, weights, tokens, and the change on each kind of text for the target, with
    interval (`sentences`), for English (`sentences_english`) and for the others in the mean (`sentences_others`).
    """
    found: dict = {"languages_measured": str(len(measured()))}
    for code, metrics in measured().items():
        about = metrics["adapter"]
        mine = {
            "neurons": f"{about['neurons']:,}",
            "weights": f"{about['parameters']:,}",
            "share": f"{percent_trained(about):.2f}%",
            "tokens": f"{about['tokens']:,}",
            "rate": rate(about["settings"]["learning_rate"]),
        }
        for kind, moved in metrics["summary"].items():
            mine[kind] = with_interval(moved["target"])
            mine[f"{kind}_english"] = with_interval(moved["english"])
            mine[f"{kind}_others"] = percent(moved["mean_of_others"])
        found[code] = mine
    return found
