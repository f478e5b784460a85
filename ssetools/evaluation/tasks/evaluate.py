"""Evaluation beyond perplexity: questions scored by likelihood, and translation, on a model in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn

from ssetools.errors import InvalidInput, MissingPackage, TextUnavailable
from ssetools.evaluation.intervals import wilson
from ssetools.evaluation.tasks.questions import OFFLINE_TASKS, TASKS, Request, parse_tasks, question_tasks
from ssetools.evaluation.tasks.translation import score_translations, translation_tasks
from ssetools.files import provenance
from ssetools.languages import get_language
from ssetools.models import model_source
from ssetools.text.hub import quiet, revision_of
from ssetools.text.sources import describe_source
from ssetools.training.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MEASURES = ("acc", "acc_norm", "acc_mutual_info")


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

    Questions are answered by likelihood: the answer is the choice with the highest, so that its wording does not need
    to be parsed. BOS opens every text, 8-bit layers work in the mode of `score_texts`, and model, adapter and tokenizer
    are left as they were.

    Args:
        model: A causal language model, 8-bit or not.
        tokenizer: Its tokenizer.
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
        The model, the adapter, all arguments, versions, and "tasks": a row for each task (two for translation). A row has "title",
        "language", "measure", "value", "low" and "high" (its 95% interval), "chance" (of guessing; for
        translation the best score without translating), "items", "shots", "data" (revision), "cut" (texts longer than
        the model's context, which lost their beginning), and what `compare_tasks` needs. An unavailable task has
        "title", "language" and "unavailable": the reason and the remedy. Accuracies are shares; BLEU and chrF++ go from
        0 to 100.

    Raises:
        ValueError: For an unknown language or task, or a folder that does not exist.
        ModuleNotFoundError: If lm-eval or sacrebleu is not installed.
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

        from ssetools.evaluation.tasks.harness import ask, in_memory
    except ModuleNotFoundError as error:
        raise MissingPackage(f'{error}. Tasks need optional packages: pip install "ssetools[tasks]".') from error
    rows: dict[str, dict] = {}
    with in_memory(model, tokenizer, batch_size) as lm, quiet("datasets"):
        for name, folder in pairs:
            task_set = TASKS[name]
            most = translations if task_set.translates and translations else limit
            asked = get_language("en") if task_set.english else language
            request = Request(name, folder, asked, most, shots, seed)
            facts: dict[str, Any] = {"title": task_set.title, "language": asked.code}
            try:
                loaded = _load(request, tokenizer)
                facts["data"] = _revision(request)
            except TextUnavailable as error:
                rows[name] = {**facts, "unavailable": str(error)}
                continue
            for key, tasks_of_row in loaded.items():
                lm.cut = 0
                answers = ask(lm, tasks_of_row, request)
                row = _translation_row if task_set.translates else _question_row
                rows[key] = {**facts, "cut": lm.cut, **row(task_set.measure, tasks_of_row, answers)}
    results = {"model": model_source(model), "adapter": _adapter(model), "lang": lang, "bos": tokenizer.bos_token}
    results |= {**numbers, "seed": seed, "tasks": rows, **provenance()}
    results["versions"] |= {package: version(package) for package in ("lm-eval", "sacrebleu")}
    return results


def _load(request: Request, tokenizer: PreTrainedTokenizerBase) -> dict[str, Mapping]:
    """Loads the tasks of lm-eval for each row of a task."""
    if not request.task_set.translates:
        return {request.name: question_tasks(request)}
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    directions = translation_tasks(request, tokenizer)
    return {f"{request.name} {direction}": manager.load([task]) for direction, task in directions.items()}


def _revision(request: Request) -> str | dict[str, str | None]:
    if request.name.startswith("udhr_"):
        return describe_source(request.source("udhr"), request.language.code)
    return revision_of(request.task_set, request.folder, request.name)


def _adapter(model: nn.Module) -> dict | None:
    try:
        adapter = Adapter.attached_to(model)
    except ValueError:
        return None
    about = {"format": adapter.format, "parameters": adapter.num_parameters, "active": adapter.active}
    return {**about, "scale": adapter.scale}


def _question_row(measure: str, loaded: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    asked = [(task, sample) for task in sorted(answers) for sample in answers[task]]
    correct = [int(sample[measure]) for _, sample in asked]
    # Questions on the same passage are one unit: their answers are correlated.
    units = [sample["doc"].get("unit", place) for place, (_, sample) in enumerate(asked)]
    counts = [len(loaded["tasks"][task].doc_to_choice(sample["doc"])) for task, sample in asked]
    others = {
        other: sum(sample[other] for _, sample in asked) / len(asked)
        for other in _MEASURES
        if other != measure and all(other in sample for _, sample in asked)
    }
    config = next(iter(loaded["tasks"].values())).config
    return {
        "measure": measure,
        **share(correct, units),
        "chance": sum(1 / count for count in counts) / len(counts),
        "other_measures": others,
        "shots": config.num_fewshot,
        "items": len(asked),
        "units": units,
        "correct": correct,
        "digest": _digest(asked),
    }


def _translation_row(measure: str, loaded: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    ((task, samples),) = answers.items()
    hypotheses = [sample["filtered_resps"][0].strip() for sample in samples]
    references = [sample["doc"]["target"] for sample in samples]
    sources, target = [sample["doc"]["source"] for sample in samples], task.rpartition("_")[2]
    examples = loaded["tasks"][task].dataset.get("examples")
    shown = [] if examples is None else examples["target"]
    scores = score_translations(hypotheses, references, sources, shown, target)
    chrf = scores[measure]
    return {
        "measure": measure,
        **{key: chrf[key] for key in ("value", "low", "high")},
        "chance": chrf["floor"],
        "scores": scores,
        "target": target,
        "shots": loaded["tasks"][task].config.num_fewshot,
        "items": len(samples),
        "hypotheses": hypotheses,
        "references": references,
        "digest": _digest([(task, sample) for sample in samples]),
    }


def share(correct: Sequence[int], units: Sequence[int]) -> dict[str, float]:
    """Computes the share of right answers and its 95% interval (Wilson).

    Args:
        correct: 1 or 0 for each question.
        units: The passage that each question is about, or the number of the question; answers on the same passage count
            as one observation.

    Returns:
        "value", "low", "high".
    """
    value = sum(correct) / len(correct)
    low, high = wilson(value, len(set(units)))
    return {"value": value, "low": low, "high": high}


def _digest(asked: Sequence[tuple[str, dict]]) -> str:
    """Identifies questions and prompts, so that only answers to the same are compared."""
    parts = (f"{task} {sample['doc_hash']} {sample['prompt_hash']}" for task, sample in asked)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
