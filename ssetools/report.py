"""The table at the end of a run: what the language gained, what the others kept, what was trained."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas
import torch

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import MIN_UNITS, interval
from ssetools.evaluation.tasks.evaluate import evaluate
from ssetools.evaluation.tasks.questions import OFFLINE_TASKS
from ssetools.evaluation.tasks.translation import compare_translations
from ssetools.files import read_json, whole_file, write_json
from ssetools.languages import get_language
from ssetools.models import model_precision
from ssetools.training.adapter import Adapter, results_at_scale


def report(metrics: dict) -> str:
    """Writes the table that `make finetune` prints."""
    about, summary = metrics["adapter"], metrics["summary"]
    lang = about["language"]
    name = get_language(lang).name
    lines = [
        f"{name} ({lang}), {about['base']['model']}, {about['method']}, seed {about['seed']}",
        *([f"  neurons trained      {about['neurons']:>10,}"] if "neurons" in about else []),
        f"  weights trained      {about['parameters']:>10,}   {percent_trained(about):.2f}% of the model",
        *([f"  scale                {about['scale']:>10g}"] if about.get("scale", 1) != 1 else []),
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


# --- task_report ---


def compare_tasks(before: Mapping, after: Mapping) -> dict[str, dict]:
    """Compares two results of `evaluate`, task by task, on the same questions.

    Args:
        before: Of the base.
        after: Of the tuned model, with the same tasks and settings.

    Returns:
        By task that both have: "difference" of the measure (positive is better) and, for questions, its 95% interval
        "low" and "high" (bootstrap over what the questions are about; None with fewer than five, or when no answer
        changed) and how many answers were "gained" and "lost"; for translation "p", from sacrebleu's paired
        bootstrap (None with fewer than five texts), and the same for BLEU.

    Raises:
        ValueError: If the questions were not the same.
    """
    found = {}
    for name, one in before["tasks"].items():
        other = after["tasks"].get(name, {"unavailable": ""})
        if "unavailable" in one or "unavailable" in other:
            continue
        if one["digest"] != other["digest"]:
            raise InvalidInput(
                f"{name} was asked with other questions or prompts before and after: they do not compare."
            )
        if "hypotheses" in one:
            scores = compare_translations(one["hypotheses"], other["hypotheses"], one["references"], one["target"])
            if len(one["hypotheses"]) < MIN_UNITS:  # resampling so few texts calls chance significant
                scores = {metric: {**score, "p": None} for metric, score in scores.items()}
            found[name] = {**scores["chrF++"], "BLEU": scores["BLEU"]}
        else:
            found[name] = _compare_answers(one, other)
    return found


def _compare_answers(one: Mapping, other: Mapping) -> dict:
    """Resamples units, each weighing as many questions as it has."""
    moved = torch.tensor(other["correct"], dtype=torch.float64) - torch.tensor(one["correct"], dtype=torch.float64)
    units = torch.tensor(one["units"])
    places = units.unique(return_inverse=True)[1]
    counts = torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add_(0, places, torch.ones_like(moved))
    means = torch.zeros_like(counts).index_add_(0, places, moved) / counts
    difference, low, high = interval(means[None], counts)
    gained, lost = int((moved > 0).sum()), int((moved < 0).sum())
    if math.isnan(low) or not gained + lost:  # resampling nothing but zeros would claim certainty
        low = high = None
    return {"difference": difference, "low": low, "high": high, "gained": gained, "lost": lost}


def get_task_scores(
    model,
    tokenizer,
    lang: str,
    folder: str | Path,
    tasks: str | Iterable[str] = OFFLINE_TASKS,
    limit: int | None = None,
    translations: int | None = None,
    shots: int | None = None,
) -> dict:
    """Loads `tasks.json` of a run, or asks the tuned model and its base and writes it.

    A file in which a task could not be had is made again: the hub may be there by now.

    Args:
        model: The model, with the run's adapter attached.
        tokenizer: Its tokenizer.
        lang: The target language.
        folder: The run's folder.
        tasks: As in `evaluate`.
        limit: As there.
        translations: As there.
        shots: As there.

    Returns:
        "before" and "after", results of `evaluate`, and "changes", of `compare_tasks`.
    """
    path, about = results_at_scale(folder, "tasks.json", Adapter.attached_to(model).scale)
    tasks = tasks.split() if isinstance(tasks, str) else list(tasks)
    options = {"tasks": tasks, "limit": limit, "translations": translations, "shots": shots}
    request = {**options, **model_precision(model), "adapter": about}
    if path.exists():
        kept = read_json(path)
        if kept["request"] == request and not any("unavailable" in row for row in kept["after"]["tasks"].values()):
            return kept
    after = evaluate(model, tokenizer, lang, **options)
    with Adapter.attached_to(model).switched_off():
        before = evaluate(model, tokenizer, lang, **options)
    scores = {"request": request, "before": before, "after": after, "changes": compare_tasks(before, after)}
    write_json(path, scores)
    return scores


def task_table(scores: Mapping) -> pandas.DataFrame:
    """Tabulates the scores of a run and its base.

    Args:
        scores: From `get_task_scores`.

    Returns:
        A row per task, also for those that could not be had: language, measure, chance, base, tuned, change with its 95%
        interval or p, and questions. Accuracies are in percent, chrF++ goes to 100.
    """
    rows = {}
    for name, after in scores["after"]["tasks"].items():
        before, change = scores["before"]["tasks"].get(name, after), scores["changes"].get(name)
        if change is None:
            rows[name] = {"language": after["language"], "measure": "cannot be had"}
            continue
        scale = 1 if "hypotheses" in after else 100
        rows[name] = {
            "language": after["language"],
            "measure": after["measure"],
            "chance": f"{scale * after['chance']:.1f}",
            "base": f"{scale * before['value']:.1f}",
            "tuned": f"{scale * after['value']:.1f}",
            "change": f"{scale * change['difference']:+.1f} ({_doubt(change, scale)})",
            "questions": str(after["items"]),
        }
    columns = ["language", "measure", "chance", "base", "tuned", "change", "questions"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns).fillna("")


def _doubt(change, scale):
    if "gained" in change and not change["gained"] + change["lost"]:
        return "no answer changed"
    if change.get("p", change.get("low")) is None:
        return "too few to say"
    if "p" in change:
        return f"p {change['p']:.2f}"
    return f"{scale * change['low']:+.1f} to {scale * change['high']:+.1f}"


def unavailable(scores: Mapping) -> dict[str, str]:
    """Returns, by task that could not be had, the reason and the remedy."""
    rows = {**scores["before"]["tasks"], **scores["after"]["tasks"]}
    return {name: row["unavailable"] for name, row in rows.items() if "unavailable" in row}


def task_report(scores: Mapping) -> str:
    """Writes the table, and below it why a task could not be had."""
    missing = [f"{name}: {why}" for name, why in unavailable(scores).items()]
    return "\n".join([task_table(scores).to_string(), *missing])
