"""Evaluation beyond perplexity: questions scored by likelihood, and translation, on a model in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ssetools.errors import IncompleteText, InvalidInput, MissingPackage, NoTextInLanguage, TextUnavailable
from ssetools.evaluation.intervals import wilson
from ssetools.evaluation.task_sets import OFFLINE_TASKS, TASKS, Request, load_tasks, parse_tasks
from ssetools.files import provenance
from ssetools.languages import UNSPACED_SCRIPTS, get_language
from ssetools.models import model_source
from ssetools.text.hub import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ssetools.training.adapter import Adapter

_RESAMPLES = 1000


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lang: str,
    tasks: str | Iterable[str] = OFFLINE_TASKS,
    limit: int | None = None,
    translations: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict:
    """Runs tasks of lm-eval, and of ssetools, on a model in memory, with its adapter or with the adapter switched off.

    The answer to a question is the choice of the highest likelihood, so that no wording needs to be parsed. BOS opens every
    text, 8-bit layers work in the mode of `score_texts`, and model, adapter and tokenizer are left as they were.

    Args:
        model, tokenizer: A causal language model, 8-bit or not, and its tokenizer.
        lang: Language code.
        tasks: Names, or "all". Made from the declaration, without a hub: "udhr_match" (which of four English passages is
            the translation of a passage?) and "udhr_translate". In the language, where the set has it: "belebele",
            "sib200", "flores", "flores_plus" (both directions), "global_mmlu", "global_piqa", "m_mmlu", "m_arc",
            "m_hellaswag". In English for every language, to measure what a model kept: "mmlu", "arc_easy",
            "arc_challenge", "hellaswag", "piqa", "winogrande". "NAME:FOLDER" takes a local copy in the hub's layout.
        limit: Questions of each task at most, from the front; of MMLU and Global-MMLU, of each subject.
        translations: Texts to translate at most, each way, which take longer than questions; None takes `limit`.
        shots: Answered examples before each question or text; None takes none for questions, four for translation.
        batch_size: Texts per forward pass.
        seed: Seed of the wrong answers and of the examples.

    Returns:
        The model, the adapter, all arguments, versions, and "tasks": a row for each task (two for translation). A row
        has "title", "language", "measure", "value", "low" and "high" (its 95% interval), "chance" (of guessing; for
        translation the best score without translating), "items", "shots", "data" (revision), "cut" (texts longer than
        the model's context, which lost their beginning), and what `compare_tasks` needs. An unavailable task has
        "title", "language" and "unavailable": the reason and the remedy. Accuracies are shares; BLEU and chrF++ go from
        0 to 100.

    Raises:
        InvalidInput: For an unknown language or task, a folder that does not exist, or more shots than there are examples.
        MissingPackage: If lm-eval or sacrebleu is not installed.
    """
    language = get_language(lang)
    pairs = parse_tasks(tasks)
    numbers = {"limit": limit, "translations": translations, "shots": shots, "batch_size": batch_size}
    for name, value in numbers.items():
        least = 0 if name == "shots" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise InvalidInput(f"{name} must be a whole number from {least} on; got {value!r}.")
    try:
        import sacrebleu  # noqa: F401

        from ssetools.evaluation.harness import ask, in_memory
    except ModuleNotFoundError as error:
        raise MissingPackage(f'{error}. Tasks need optional packages: pip install "ssetools[tasks]".') from error
    rows: dict[str, dict] = {}
    questions: list[tuple[str, Request, dict]] = []
    with in_memory(model, tokenizer, batch_size) as lm, quiet("datasets"):
        # All sets are loaded before any is asked, so that a mistake stops before hours of computing.
        for name, folder in pairs:
            task_set = TASKS[name]
            most = translations if task_set.translates and translations else limit
            asked = get_language("en") if task_set.english else language
            request = Request(name, folder, asked, most, shots, seed)
            facts: dict[str, Any] = {"title": task_set.title, "language": asked.code}
            try:
                loaded, facts["data"] = load_tasks(request, tokenizer), request.revision()
            except (NoTextInLanguage, IncompleteText, TextUnavailable) as error:
                rows[name] = {**facts, "unavailable": str(error)}
                continue
            rows |= dict.fromkeys(loaded, facts)
            questions += [(row, request, of_row["tasks"]) for row, of_row in loaded.items()]
        for row, request, of_row in questions:
            lm.cut, task_set = 0, TASKS[request.name]
            answers = ask(lm, of_row, request)
            score = _score_translations if task_set.translates else _score_questions
            rows[row] = {**rows[row], "cut": lm.cut, **score(task_set.measure, of_row, answers)}
    about, adapter = None, cast("Adapter | None", getattr(model, "ssetools_adapter", None))
    if adapter is not None:
        about = {"format": adapter.format, "parameters": adapter.num_parameters, "active": adapter.active}
        about["scale"] = adapter.scale
    results = {"model": model_source(model), "adapter": about, "lang": lang}
    results |= {"bos": tokenizer.bos_token, **numbers, "seed": seed, "tasks": rows, **provenance()}
    results["versions"] |= {package: version(package) for package in ("lm-eval", "sacrebleu")}
    return results


def _score_questions(measure: str, tasks: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    asked = [(task, sample) for task in sorted(answers) for sample in answers[task]]
    correct = [int(sample[measure]) for _, sample in asked]
    # Questions on the same passage are one unit: their answers are correlated.
    units = [sample["doc"].get("unit", place) for place, (_, sample) in enumerate(asked)]
    chances = [1 / len(tasks[task].doc_to_choice(sample["doc"])) for task, sample in asked]
    others = {"acc", "acc_norm", "acc_mutual_info"} - {measure} & set.intersection(*(set(x) for _, x in asked))
    return {
        "measure": measure,
        **share(correct, units),
        "chance": sum(chances) / len(asked),
        "other_measures": {x: sum(sample[x] for _, sample in asked) / len(asked) for x in sorted(others)},
        "shots": next(iter(tasks.values())).config.num_fewshot,
        "items": len(asked),
        "units": units,
        "correct": correct,
        "digest": _digest(asked),
    }


def _score_translations(measure: str, tasks: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    ((task, samples),) = answers.items()
    hypotheses = [sample["filtered_resps"][0].strip() for sample in samples]
    sources, references = ([sample["doc"][side] for sample in samples] for side in ("source", "target"))
    target = task.rpartition("_")[2]
    examples = tasks[task].dataset.get("examples")
    scores = score_translations(hypotheses, references, sources, examples["target"] if examples else [], target)
    return {
        "measure": measure,
        **{key: scores[measure][key] for key in ("value", "low", "high")},
        "chance": scores[measure]["floor"],
        "scores": scores,
        "target": target,
        "shots": tasks[task].config.num_fewshot,
        "items": len(samples),
        "hypotheses": hypotheses,
        "references": references,
        "digest": _digest([(task, sample) for sample in samples]),
    }


def _digest(asked: Sequence[tuple[str, dict]]) -> str:
    """Identifies questions and prompts, so that only answers to the same are compared."""
    parts = (f"{task} {sample['doc_hash']} {sample['prompt_hash']}" for task, sample in asked)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def share(correct: Sequence[int], units: Sequence[int]) -> dict[str, float]:
    """Computes the share of right answers (1 or 0; "value") and its 95% interval ("low", "high"; Wilson).

    `units` are the passages that the questions are about: answers on the same passage count as one observation.
    """
    value = sum(correct) / len(correct)
    low, high = wilson(value, len(set(units)))
    return {"value": value, "low": low, "high": high}


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str], shown: Sequence[str], target: str
) -> dict:
    """Scores translations of `sources` into the language with code `target`, as a corpus.

    Returns "chrF++" and "BLEU", each with "value", its 95% interval "low" and "high" (bootstrap over texts; None where the
    score is zero), "floor" (the best score without translating: copying every source, or repeating one of the translations
    that were `shown` as examples, as models that cannot translate do) and "signature".
    """
    scores = {}
    for name, metric in _metrics(target).items():
        untranslated = [list(sources), *([text] * len(references) for text in shown)]
        floor = max(metric.corpus_score(answers, [list(references)]).score for answers in untranslated)
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=_RESAMPLES)
        signature = metric.get_signature().format()
        half = json.loads(score.format(width=4, signature=signature, is_json=True)).get("confidence_var")
        low, high = (None, None) if half is None else (max(score.score - half, 0.0), score.score + half)
        scores[name] = {"value": score.score, "low": low, "high": high, "floor": floor, "signature": signature}
    return scores


def compare_translations(before: Sequence[str], after: Sequence[str], references: Sequence[str], target: str) -> dict:
    """Compares two translations of the same texts with sacrebleu's paired bootstrap.

    Returns for "chrF++" and "BLEU" the "difference" (positive is better) and "p", the probability of a difference as large
    if both were equally good.
    """
    from sacrebleu.significance import PairedTest

    metrics = _metrics(target)
    systems: list[tuple[str, Sequence[str]]] = [("before", list(before)), ("after", list(after))]
    _, results = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=_RESAMPLES)()
    del results["System"]  # the names; the others are a list for each metric, in the order of `metrics`
    changes = {}
    for name, (old, new) in zip(metrics, cast(Any, results.values()), strict=True):
        difference = new.score - old.score
        # sacrebleu's test finds a difference of exactly 0 significant.
        changes[name] = {"difference": difference, "p": new.p_value if difference else 1.0}
    return changes


def _metrics(target: str) -> dict:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # BLEU counts words, which these scripts do not separate; chrF++ works without.
    script = get_language(target).script
    words = "zh" if script in ("Hans", "Hant", "Hani") else "char" if script in UNSPACED_SCRIPTS else "13a"
    return {"chrF++": CHRF(word_order=2), "BLEU": BLEU(tokenize=words)}
