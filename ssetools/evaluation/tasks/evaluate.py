"""Evaluation beyond perplexity: questions scored by likelihood, and translation, on a model in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from torch import nn

from ssetools.errors import InvalidInput, MissingPackage, TextUnavailable
from ssetools.evaluation.intervals import NORMAL, wilson
from ssetools.evaluation.tasks.questions import OFFLINE_TASKS, TASKS, parse_tasks, question_tasks
from ssetools.evaluation.tasks.translation import score_translations, translation_tasks
from ssetools.files import provenance
from ssetools.languages import Language, get_language
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
        "language", "measure", "value", "low" and "high" (its 95% interval), "stderr", "chance" (of guessing; for
        translation the best score without translating), "items", "shots", "data" (revision), "cut" (texts longer than
        the model's context, which lost their beginning), and what `compare_tasks` needs. An unavailable task has
        "title", "language" and "unavailable": the reason and the remedy. Accuracies are shares; BLEU and chrF++ go from
        0 to 100.

    Raises:
        ValueError: For an unknown language or task, or a folder that does not exist.
        ModuleNotFoundError: If lm-eval or sacrebleu is not installed.
    """
    language = get_language(lang)
    wanted = parse_tasks(tasks)
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
        for name, folder in wanted:
            asked = get_language("en") if TASKS[name].english else language
            most = translations if TASKS[name].translates and translations else limit
            settings = {"limit": most, "shots": shots, "seed": seed}
            try:
                prepared = _prepare(name, folder, asked, tokenizer, **settings)
                data = _revision(name, folder, asked)
            except TextUnavailable as error:
                rows[name] = {"title": TASKS[name].title, "language": asked.code, "unavailable": str(error)}
                continue
            for key, loaded in prepared.items():
                lm.cut = 0
                answers = ask(lm, loaded, **settings)
                row = _translation_row if TASKS[name].translates else _question_row
                facts = {"title": TASKS[name].title, "language": asked.code, "data": data, "cut": lm.cut}
                rows[key] = facts | row(name, loaded, answers)
    facts = {"model": model_source(model), "adapter": _adapter(model), "lang": lang, "bos": tokenizer.bos_token}
    facts |= {**numbers, "seed": seed, "tasks": rows, **provenance()}
    facts["versions"] |= {package: version(package) for package in ("lm-eval", "sacrebleu")}
    return facts


def _prepare(
    name: str,
    folder: str,
    language: Language,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    shots: int | None,
    seed: int,
) -> dict[str, Mapping]:
    """Loads the tasks of lm-eval for each row of a task."""
    if not TASKS[name].translates:
        return {name: question_tasks(name, folder, language, shots, seed)}
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    directions = translation_tasks(name, folder, language, tokenizer, limit, shots, seed)
    return {f"{name} {direction}": manager.load([task]) for direction, task in directions.items()}


def _revision(name: str, folder: str, language: Language) -> str | dict[str, str]:
    if name.startswith("udhr_"):
        return describe_source(f"udhr:{folder}" if folder else "udhr", language.code)
    return revision_of(TASKS[name], folder, name)


def _adapter(model: nn.Module) -> dict | None:
    try:
        adapter = Adapter.attached_to(model)
    except ValueError:
        return None
    about = {"format": adapter.format, "parameters": adapter.num_parameters, "active": adapter.active}
    return {**about, "scale": adapter.scale}


def _question_row(name: str, loaded: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    asked = [(task, sample) for task in sorted(answers) for sample in answers[task]]
    measure = TASKS[name].measure
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


def _translation_row(name: str, loaded: Mapping, answers: Mapping[str, Sequence[dict]]) -> dict:
    ((task, samples),) = answers.items()
    hypotheses = [sample["filtered_resps"][0].strip() for sample in samples]
    references = [sample["doc"]["target"] for sample in samples]
    sources, target = [sample["doc"]["source"] for sample in samples], task.rpartition("_")[2]
    examples = loaded["tasks"][task].dataset.get("examples")
    shown = [] if examples is None else examples["target"]
    scores = score_translations(hypotheses, references, sources, shown, target)
    chrf = scores["chrF++"]
    stderr = None if chrf["low"] is None else (chrf["high"] - chrf["low"]) / (2 * NORMAL)
    return {
        "measure": "chrF++",
        **{key: chrf[key] for key in ("value", "low", "high")},
        "stderr": stderr,
        "chance": chrf["floor"],
        "scores": scores,
        "target": target,
        "shots": loaded["tasks"][task].config.num_fewshot,
        "items": len(samples),
        "empty": sum(not text for text in hypotheses),
        "hypotheses": hypotheses,
        "references": references,
        "digest": _digest([(task, sample) for sample in samples]),
    }


def share(correct: Sequence[int], units: Sequence[int]) -> dict:
    """Computes the share of right answers with its standard error and its 95% interval (Wilson).

    Answers of the same unit count as one observation.

    Args:
        correct: 1 or 0 for each question.
        units: The passage that each question is about, or the number of the question.

    Returns:
        "value", "stderr", "low", "high".
    """
    total, value = len(correct), sum(correct) / len(correct)
    deviations: dict[int, float] = {}
    for right, unit in zip(correct, units, strict=True):
        deviations[unit] = deviations.get(unit, 0.0) + right - value
    n = len(deviations)
    stderr = math.sqrt(n / (n - 1) * sum(x * x for x in deviations.values())) / total if n > 1 else None
    low, high = wilson(value, n)
    return {"value": value, "stderr": stderr, "low": low, "high": high}


def _digest(asked: Sequence[tuple[str, dict]]) -> str:
    """Identifies questions and prompts, so that only answers to the same are compared."""
    parts = (f"{task} {sample['doc_hash']} {sample['prompt_hash']}" for task, sample in asked)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
