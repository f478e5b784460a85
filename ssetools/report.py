"""The report of a run: what the language gained, what the other languages kept, and what was trained."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas
import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import MIN_UNITS, interval, percent, signed, with_interval
from ssetools.evaluation.task_sets import OFFLINE_TASKS
from ssetools.evaluation.tasks import compare_translations, evaluate
from ssetools.files import atomic_write, kept, read_json, write_json
from ssetools.languages import get_language
from ssetools.models import model_precision
from ssetools.steps import results_at_scale
from ssetools.training.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_GUIDE = "https://github.com/ssetools/ssetools/blob/main/book/which_method.md"


class Report(str):
    """The report of a run as text. A notebook shows the same lines around an HTML table."""

    table: pandas.DataFrame

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        above, _, below = self.split("\n\n")
        table = self.table.to_html(index=False, border=0, justify="left")
        return f"<pre>{html.escape(above)}</pre>\n{table}\n<pre>{html.escape(below)}</pre>"


def report(metrics: Mapping) -> Report:
    """Writes a run's metrics.json as text: what was trained, the table of perplexities, and where the adapter is."""
    about = metrics["adapter"]
    name = f"{get_language(about['language']).name} ({about['language']})"
    lines = [f"{name}, {about['base']['model']}, {about['method']}, seed {about['seed']}"]
    if "neurons" in about:
        lines.append(f"  neurons trained      {about['neurons']:>10,}")
    lines.append(f"  weights trained      {about['parameters']:>10,}   {percent_trained(about):.2f}% of the model")
    if about.get("scale", 1) != 1:
        lines.append(f"  scale                {about['scale']:>10g}   of the trained change")
    cost = f"{about['seconds'] / 60:.1f} minutes, {about['peak_memory_gib']:.1f} GiB"
    lines += [f"  training             {about['tokens']:>10,} tokens of {about['source']}, {cost}", ""]
    table = report_table(metrics)
    rows = [table.columns.to_list(), *table.to_numpy().tolist()]
    width = max(36, *(len(row[0]) + 2 for row in rows))
    lines += [f"  {text:<{width}}{before:>8}{after:>8}  {change}" for text, before, after, change in rows]
    lines += ["", f"  {metrics['reason']}", f"  adapter: {metrics['folder']}", f"  other methods and scales: {_GUIDE}"]
    text = Report("\n".join(lines))
    text.table = table
    return text


def report_table(metrics: Mapping) -> pandas.DataFrame:
    """Tabulates the perplexities in a run's metrics.json as strings, ready to be shown as text or as HTML.

    There is a row for each genre and the language, English, and the mean of all other languages: "perplexity" (of which
    text), "before", "after", and "change (95% interval)" in percent.
    """
    rows = []
    for genre, summary in metrics["summary"].items():
        seen = "seen genre" if genre in metrics["same_kind"] else "unseen genre"
        for code, change in {metrics["adapter"]["language"]: summary["target"], "en": summary["english"]}.items():
            if change is not None:
                scores = (f"{metrics[when][genre][code]['perplexity']:.2f}" for when in ("before", "after"))
                text = f"{get_language(code).name}, {genre} ({seen})"
                rows.append([text, *scores, with_interval(change["percent"], change["low"], change["high"])])
        if summary["mean_of_others"] is not None:
            text = f"{len(summary['others'])} other languages, {genre} ({seen})"
            worst, change = max(summary["others"].items(), key=lambda item: item[1]["percent"])
            changes = f"{percent(summary['mean_of_others'])} on average, {percent(change['percent'])} at worst"
            rows.append([text, "", "", f"{changes} ({get_language(worst).name})"])
    return pandas.DataFrame(rows, columns=["perplexity", "before", "after", "change (95% interval)"])


def collect(runs: str | Path, output: str | Path, files: Sequence[str | Path] = ()) -> int:
    """Gathers the metrics of scored runs (the metrics.json `files`, or all in the folder) and returns how many there are.

    The CSV `output` has a row per run, genre and language: the change of perplexity in percent with its 95% interval, empty
    where there are too few windows.
    """
    paths = sorted(map(Path, files)) or sorted(Path(runs).glob("*/*/*-seed*/metrics.json"))
    if not paths:
        raise FileNotFoundError(f"There is no metrics.json under {runs}: run `ssetools evaluate` first.")
    rows = []
    for metrics in map(read_json, paths):
        about = metrics["adapter"]
        run = [about["base"]["model"], about["language"], about["method"], about["seed"]]
        for genre, summary in metrics["summary"].items():
            for lang, change in {about["language"]: summary["target"], **summary["others"]}.items():
                numbers = [change[name] for name in ("percent", "low", "high")]
                rows.append([*run, genre, genre in metrics["same_kind"], lang, *numbers])
    columns = ["model", "language", "method", "seed", "text", "trained_kind", "measured_in", "percent", "low", "high"]
    with atomic_write(output) as scratch:
        pandas.DataFrame(rows, columns=columns).to_csv(scratch, index=False)
    return len(paths)


def percent_trained(about: Mapping) -> float:
    """Returns the trained weights as a percentage of the model's, from the facts in adapter.json."""
    return 100 * about["parameters"] / about["model_parameters"]


# --- tasks ---


def compare_tasks(before: Mapping, after: Mapping) -> dict[str, dict]:
    """Compares two results of `evaluate`, of the base and of the tuned model, task by task, on the same questions.

    Returns by task that both have the "difference" of the measure (positive is better) and, for questions, its 95% interval
    "low" and "high" (bootstrap over what the questions are about; None with fewer than five, or when no answer changed) and
    how many answers were "gained" and "lost"; for translation "p", from sacrebleu's paired bootstrap (None with fewer than
    five texts), and the same for BLEU.
    """
    changes = {}
    for name, base in before["tasks"].items():
        tuned = after["tasks"].get(name, {"unavailable": ""})
        if "unavailable" in base or "unavailable" in tuned:
            continue
        if base["digest"] != tuned["digest"]:
            raise InvalidInput(f"The prompts of {name} were not the same before and after: evaluate both again.")
        if "hypotheses" in base:
            scores = compare_translations(base["hypotheses"], tuned["hypotheses"], base["references"], base["target"])
            if len(base["hypotheses"]) < MIN_UNITS:  # resampling so few texts finds chance differences significant
                scores = {metric: {**score, "p": None} for metric, score in scores.items()}
            changes[name] = {**scores["chrF++"], "BLEU": scores["BLEU"]}
        else:
            changes[name] = _compare_answers(base, tuned)
    return changes


def _compare_answers(base: Mapping, tuned: Mapping) -> dict:
    """Resamples what the questions are about, each weighing as many questions as it has."""
    moved = pandas.Series(tuned["correct"], dtype=float) - pandas.Series(base["correct"], dtype=float)
    units = moved.groupby(base["units"]).agg(["mean", "size"])
    means, sizes = (torch.tensor(units[name].tolist(), dtype=torch.float64) for name in ("mean", "size"))
    difference, low, high = interval(means[None], sizes)
    gained, lost = int((moved > 0).sum()), int((moved < 0).sum())
    unknown = math.isnan(low) or not gained + lost  # resampling zeros alone would claim certainty
    ends = {"low": None, "high": None} if unknown else {"low": low, "high": high}
    return {"difference": difference, **ends, "gained": gained, "lost": lost}


def get_task_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lang: str,
    folder: str | Path,
    tasks: str | Iterable[str] = OFFLINE_TASKS,
    limit: int | None = None,
    translations: int | None = None,
    shots: int | None = None,
) -> dict:
    """Loads `tasks.json` of a run, or evaluates the tuned model and its base and writes it.

    A file in which a task was unavailable is made again: the hub may be reachable by now. The model has the run's
    adapter attached; the arguments after the run's folder are those of `evaluate`. Returns "before" and "after", results of
    `evaluate`, and "changes", of `compare_tasks`.
    """
    path, about = results_at_scale(folder, "tasks.json", Adapter.attached_to(model).scale)
    tasks = tasks.split() if isinstance(tasks, str) else list(tasks)
    options = {"tasks": tasks, "limit": limit, "translations": translations, "shots": shots}
    request = {**options, **model_precision(model), "adapter": about}
    scores = kept(path, {"request": request}, on_change="remake")
    if scores and not unavailable(scores):
        return scores
    after = evaluate(model, tokenizer, lang, **options)
    with Adapter.attached_to(model).switched_off():
        before = evaluate(model, tokenizer, lang, **options)
    scores = {"request": request, "before": before, "after": after, "changes": compare_tasks(before, after)}
    write_json(path, scores)
    return scores


def task_table(scores: Mapping) -> pandas.DataFrame:
    """Tabulates what `get_task_scores` returns as strings, ready to be shown as text or as HTML.

    There is a row per task, also for those that are unavailable: language, measure, chance, base, tuned, change with its
    95% interval or p, and questions. Accuracies are in percent, chrF++ goes to 100.
    """
    rows = {}
    for name, after in scores["after"]["tasks"].items():
        rows[name] = [after["language"], "unavailable", "", "", "", "", ""]
        if change := scores["changes"].get(name):
            scale = 1 if "hypotheses" in after else 100
            values = (after["chance"], scores["before"]["tasks"][name]["value"], after["value"])
            shown = [f"{scale * value:.1f}" for value in values]
            rows[name][1:] = [after["measure"], *shown, _change_in_words(change, scale), str(after["items"])]
    columns = ["language", "measure", "chance", "base", "tuned", "change", "questions"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)


def _change_in_words(change: Mapping, scale: int) -> str:
    difference = scale * change["difference"]
    if "gained" in change and not change["gained"] + change["lost"]:
        return f"{signed(difference)} (no answer changed)"
    if change.get("p", change.get("low")) is None:
        return f"{signed(difference)} (fewer than {MIN_UNITS}: no interval)"
    if "p" in change:
        return f"{signed(difference)} (p {change['p']:.2f})"
    return with_interval(difference, scale * change["low"], scale * change["high"], unit="")


def unavailable(scores: Mapping) -> dict[str, str]:
    """Returns the reason and the remedy for each task that was unavailable."""
    rows = {**scores["before"]["tasks"], **scores["after"]["tasks"]}
    return {name: row["unavailable"] for name, row in rows.items() if "unavailable" in row}


def task_report(scores: Mapping) -> str:
    """Writes the table of tasks as text, and below it why tasks were unavailable."""
    reasons = [f"{name}: {reason}" for name, reason in unavailable(scores).items()]
    return "\n".join([task_table(scores).to_string(), *reasons])
