"""Measures a trained run against its base, and writes metrics.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ssetools.evaluation.perplexity import change, score_languages
from ssetools.files import model_dir, provenance, read_json, write_json
from ssetools.languages import PROFILED_LANGUAGES
from ssetools.models import model_precision, model_source
from ssetools.text.sources import SOURCES, TextPlan, digest_of, load_texts
from ssetools.training.adapter import Adapter, adapter_facts


def test_texts(plan: TextPlan, lang: str, languages: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Loads the test text of every kind: the target's from any source, other languages' where the source has them."""
    texts: dict[str, dict[str, list[str]]] = {}
    for kind, source in plan.kinds.items():
        # Text of your own is in the target language; the named corpora have them all.
        others = [x for x in languages if x != lang] if source.split(":")[0] in SOURCES else []
        texts[kind] = {x: load_texts(source, x, "test") for x in [lang, *others]}
    return texts


def get_metrics(
    model,
    tokenizer,
    lang: str,
    folder: Path,
    plan: TextPlan,
    runs="runs",
    languages: Sequence[str] = PROFILED_LANGUAGES,
    budgets: dict[str, int] | None = None,
) -> dict:
    """Loads `metrics.json` of a run, or scores the attached adapter against the base and writes it.

    Args:
        model: The model, with the run's adapter attached.
        tokenizer: Its tokenizer.
        lang: The target language.
        folder: The run's folder.
        plan: What to measure on.
        runs: Folder of runs; the base's scores are kept there, for every language that comes later.
        languages: Languages to measure retention in; English is always among them.
        budgets: Tokens to score, by language; "*" for the others.

    Returns:
        The metrics, see `summarise`.
    """
    path = folder / "metrics.json"
    budgets = budgets or {"*": 256, "en": 1024, lang: 2048}
    texts = test_texts(plan, lang, dict.fromkeys([lang, "en", *languages]))
    request = {"kinds": plan.kinds, "languages": list(languages), "budgets": budgets, "text": digest_of(texts)}
    request |= model_precision(model)
    about = adapter_facts(folder)
    if path.exists():
        metrics = read_json(path)
        if metrics["request"] == request and metrics["adapter"] == about:
            return metrics
    print(f"Scoring {len(texts)} kinds of text in up to {len(languages)} languages, after and before ...", flush=True)
    after = score_languages(model, tokenizer, texts, budgets)
    with Adapter.attached_to(model).switched_off():
        before = _base_scores(model, tokenizer, texts, budgets, plan, runs)
    metrics = {
        "folder": folder.as_posix(),
        "request": request,
        "same_kind": plan.same_kind,
        "reason": plan.reason,
        "adapter": about,
    }
    metrics |= {"before": before, "after": after, "summary": summarise(before, after, lang), **provenance()}
    write_json(path, metrics)
    return metrics


def _base_scores(model, tokenizer, texts, budgets, plan, runs):
    """Scores the base, reusing what earlier languages of the same model and text have scored."""
    about = model_source(model)
    path = model_dir(about["model"], runs) / "base.json"
    hardware = provenance()["hardware"]  # other instructions, other rounding: a base of one's own kind of machine
    kept = read_json(path) if path.exists() else {"model": about, "scores": {}}
    if kept["model"] != about:
        kept = {"model": about, "scores": {}}
    found: dict = {}
    for kind, by_language in texts.items():
        for lang, documents in by_language.items():
            budget = budgets.get(lang, budgets["*"])
            key = f"{plan.kinds[kind]} {lang} {budget} {digest_of(documents)}, {hardware}"
            if key not in kept["scores"]:
                one = score_languages(model, tokenizer, {kind: {lang: documents}}, budgets)
                kept["scores"][key] = one[kind][lang]
            found.setdefault(kind, {})[lang] = kept["scores"][key]
    write_json(path, kept)
    return found


def summarise(before: dict, after: dict, lang: str) -> dict:
    """Summarises scores by kind: the target's change, each other language's, their mean, and English's.

    Returns:
        By kind: "target", "english", "others" (by language) and "mean_of_others". Changes are of perplexity, in
        percent; the mean is of ln perplexity, as a percentage.
    """
    summary = {}
    for kind in before:
        changes = {x: change(before[kind][x], after[kind][x]) for x in before[kind]}
        others = {x: c for x, c in changes.items() if x != lang}
        mean = sum(math.log1p(c["percent"] / 100) for c in others.values()) / len(others) if others else None
        summary[kind] = {
            "target": changes[lang],
            "english": changes.get("en"),
            "others": others,
            "mean_of_others": None if mean is None else 100 * math.expm1(mean),
        }
    return summary
