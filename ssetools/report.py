"""The table at the end of a run: what the language gained, what the others kept, what was trained."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ssetools.languages import get_language
from ssetools.paths import read_json, whole_file


def report(metrics: dict) -> str:
    """Writes the table that `make finetune` prints."""
    about, summary = metrics["adapter"], metrics["summary"]
    lang = about["language"]
    name = get_language(lang).name
    lines = [
        f"{name} ({lang}), {about['base']['model']}, {about['method']}, seed {about['seed']}",
        *([f"  neurons trained      {about['neurons']:>10,}"] if "neurons" in about else []),
        f"  weights trained      {about['parameters']:>10,}   {percent_trained(about):.2f}% of the model",
        f"  training             {about['tokens']:>10,} tokens of {about['source']}, {about['seconds'] / 60:.1f} minutes, {about['peak_memory_gib']:.1f} GiB",
        "",
        f"  {'perplexity':<36}{'before':>8}{'after':>8}  {'change (95% interval)'}",
    ]
    for kind, found in summary.items():
        relation = "trained kind" if kind in metrics["same_kind"] else "another kind"
        for code, moved in {lang: found["target"], "en": found["english"]}.items():
            if moved is None:
                continue
            label = f"{get_language(code).name}, {kind} ({relation})"
            before, after = metrics["before"][kind][code], metrics["after"][kind][code]
            lines.append(f"  {label:<36}{before['perplexity']:>8.2f}{after['perplexity']:>8.2f}  {_interval(moved)}")
        if found["mean_of_others"] is not None:
            label = f"{len(found['others'])} other languages, {kind}"
            lines.append(f"  {label:<36}{'':>16}  {found['mean_of_others']:+.1f}% in the mean")
    lines += ["", f"  {metrics['reason']}", f"  adapter: {metrics['folder']}"]
    return "\n".join(lines)


_COLUMNS = ("model", "language", "method", "seed", "text", "trained_kind", "measured_in", "percent", "low", "high")


def collect(runs: str | Path, output: str | Path, files: Sequence[str | Path] = ()) -> int:
    """Gathers the metrics of scored runs into one CSV, a row per run, kind of text and language.

    Args:
        runs: Folder of runs.
        files: The metrics.json of each run; none takes every run of the folder.
        output: CSV file: change of perplexity in percent with its 95% interval, empty where too few windows give none.

    Returns:
        Number of runs.

    Raises:
        FileNotFoundError: If there is no scored run.
    """
    found = sorted(map(Path, files)) or sorted(Path(runs).glob("*/*/*-seed*/metrics.json"))
    if not found:
        raise FileNotFoundError(f"There is no metrics.json under {runs}: run `ssetools evaluate` first.")
    with whole_file(output) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for path in found:
            metrics = read_json(path)
            about = metrics["adapter"]
            run = [about["base"]["model"], about["language"], about["method"], about["seed"]]
            for kind, summary in metrics["summary"].items():
                for lang, moved in {about["language"]: summary["target"], **summary["others"]}.items():
                    numbers = [moved[name] for name in ("percent", "low", "high")]
                    writer.writerow([*run, kind, kind in metrics["same_kind"], lang, *numbers])
    return len(found)


def percent_trained(about: dict) -> float:
    """Returns the trained numbers as a percentage of the model's weights, from the facts in adapter.json."""
    return 100 * about["parameters"] / about["model_parameters"]


def _interval(moved: dict) -> str:
    if moved["low"] is None:
        return f"{moved['percent']:+.1f}%"
    return f"{moved['percent']:+.1f}% ({moved['low']:+.1f} to {moved['high']:+.1f})"
