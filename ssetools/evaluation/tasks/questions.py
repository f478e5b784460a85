"""Sets of questions that are scored by likelihood: where each comes from, its languages, its definition for lm-eval."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssetools.errors import InvalidInput, TextUnavailable
from ssetools.languages import Language
from ssetools.text.hub import HUB_CORPORA, HubText, fresh, hub_reachable, unavailable
from ssetools.text.sources import load_parallel, split_name

_TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")


@dataclass(frozen=True)
class TaskSet:
    """A set of tasks.

    Attributes:
        title: Its name in sentences.
        repository: Its id on the hub; "" for sets that are made from the declaration.
        built_in: Its name in lm-eval, "" where lm-eval lacks it: "{code}" is replaced by the language's code in this
            set, "{tag}" by language and script in lower case.
        folder: Folder of its definition in lm-eval.
        measure: The metric of lm-eval that is reported.
        english: Whether it is in English for every language: it measures what a model kept.
        gated: Whether its terms must be accepted on the hub.
    """

    title: str
    repository: str = ""
    built_in: str = ""
    folder: str = ""
    measure: str = "acc"
    english: bool = False
    gated: bool = False

    @property
    def translates(self) -> bool:
        """Whether its texts are translated; otherwise it is a set of questions."""
        return self.measure == "chrF++"


_OKAPI = "okapi/{}_multilingual"
TASKS = {
    "udhr_match": TaskSet("The declaration, matched", measure="acc_mutual_info"),
    "udhr_translate": TaskSet("The declaration, translated", measure="chrF++"),
    "belebele": TaskSet("BELEBELE", "facebook/belebele", "belebele_{code}", "belebele"),
    "sib200": TaskSet("SIB-200", HUB_CORPORA["sib200"].repository, measure="acc_mutual_info"),
    "flores": TaskSet("FLORES-200", HUB_CORPORA["flores"].repository, measure="chrF++"),
    "flores_plus": TaskSet("FLORES+", HUB_CORPORA["flores_plus"].repository, measure="chrF++", gated=True),
    "global_mmlu": TaskSet(
        "Global-MMLU", "CohereLabs/Global-MMLU", "global_mmlu_full_{code}", "global_mmlu/full/{code}"
    ),
    "global_piqa": TaskSet(
        "Global PIQA",
        "mrlbenchmarks/global-piqa-nonparallel",
        "global_piqa_nonparallel_cloze_{tag}",
        "global_piqa/nonparallel_cloze",
        "acc_norm",
    ),
    "m_mmlu": TaskSet("Multilingual MMLU", "alexandrainst/m_mmlu", "m_mmlu_{code}", _OKAPI.format("mmlu")),
    "m_arc": TaskSet("Multilingual ARC", "alexandrainst/m_arc", "arc_{code}", _OKAPI.format("arc"), "acc_norm"),
    "m_hellaswag": TaskSet(
        "Multilingual HellaSwag",
        "alexandrainst/m_hellaswag",
        "hellaswag_{code}",
        _OKAPI.format("hellaswag"),
        "acc_norm",
    ),
    "mmlu": TaskSet("MMLU", "cais/mmlu", "mmlu", "mmlu/default", english=True),
    "arc_easy": TaskSet("ARC, easy", "allenai/ai2_arc", "arc_easy", "arc", english=True),
    "arc_challenge": TaskSet("ARC, challenge", "allenai/ai2_arc", "arc_challenge", "arc", "acc_norm", english=True),
    "hellaswag": TaskSet("HellaSwag", "Rowan/hellaswag", "hellaswag", "hellaswag", "acc_norm", english=True),
    # The original, ybisk/piqa, is a script that `datasets` no longer runs; this is the copy that lm-eval uses.
    "piqa": TaskSet("PIQA", "baber/piqa", "piqa", "piqa", "acc_norm", english=True),
    "winogrande": TaskSet("WinoGrande", "allenai/winogrande", "winogrande", "winogrande", english=True),
}
"""Task sets by name."""

OFFLINE_TASKS = ("udhr_match", "udhr_translate")
"""Tasks that need no hub."""


def parse_tasks(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """Splits "NAME" and "NAME:FOLDER" into names and folders of local copies ("" for none).

    Raises:
        ValueError: For an unknown name, a folder that does not exist, or a name given twice.
    """
    tasks = tasks.split() if isinstance(tasks, str) else list(tasks)
    if tasks == ["all"]:
        tasks = list(TASKS)
    pairs = [split_name(task) for task in tasks]
    for name, folder in pairs:
        if name not in TASKS:
            raise InvalidInput(f"Unknown task {name!r}: use {', '.join(TASKS)}, or NAME:FOLDER for a local copy.")
        if folder and not Path(folder).is_dir():
            raise InvalidInput(f"Task {name!r} names a folder that does not exist: {folder}.")
    names = [name for name, _ in pairs]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"Name one task or several, each once; got {' '.join(names) or 'none'}.")
    return pairs


def question_tasks(name: str, folder: str, language: Language, shots: int | None, seed: int) -> Mapping:
    """Loads the tasks of a set of questions with their data.

    Args:
        name: Name in `TASKS` of a set of questions.
        folder: A local copy in the hub's layout, or "".
        language: The language.
        shots: Answered examples before each question, or None.
        seed: Seed of the wrong answers.

    Returns:
        What lm-eval's `TaskManager.load` returns: tasks of lm-eval by name, under "tasks".

    Raises:
        TextUnavailable: If the set or the language is unavailable; the message has the remedy.
    """
    from lm_eval.tasks import TaskManager

    if TASKS[name].built_in:
        tasks = _built_in(name, folder, language)
    else:
        own = match_task(language, folder, shots, seed) if name == "udhr_match" else _topics(folder, language, shots)
        tasks = TaskManager(include_defaults=False).load([own])
    for task in tasks["tasks"].values():
        config = task.config
        if shots and not (config.fewshot_split or config.training_split or config.validation_split):
            raise TextUnavailable(f"{TASKS[name].title} has no examples beside its questions: use shots=0.")
    return tasks


def _built_in(name: str, folder: str, language: Language) -> Mapping:
    """Loads a task or group of lm-eval from its definition alone: indexing all tasks of lm-eval takes half a minute."""
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    task_set = TASKS[name]
    codes = {"code": language.code_for(name), "tag": f"{language.iso639_3}_{language.script}".lower()}
    definitions = Path(lm_eval.tasks.__file__).parent / task_set.folder.format(**codes)
    built_in = task_set.built_in.format(**codes)
    manager = TaskManager(include_path=definitions, include_defaults=False) if definitions.is_dir() else None
    if manager is None or built_in not in manager.all_tasks:
        raise no_such_language(name, language)
    if not folder:
        hub_reachable()
    place = folder or task_set.repository
    members = dict(_members(manager.task_index, built_in))
    # Loaded before lm-eval loads it, so that only errors of the data are reported as unavailable.
    try:
        with unavailable(task_set, folder, name):
            for config in dict.fromkeys(members.values()):
                datasets.load_dataset(place, config, **fresh(folder))
    except InvalidInput as error:  # a local copy without the language, or damaged
        raise TextUnavailable(str(error)) from error
    return manager.load([{"group": name, "task": [{"task": member, "dataset_path": place} for member in members]}])


def _members(index: Mapping, name: str) -> Iterator[tuple[str, str | None]]:
    """Yields a task, or every task of a group, with the configuration of the data set that it reads."""
    entry: Any = index[name]
    config: Any = entry.cfg or {"task": sorted(entry.tags)}
    members = config["task"]
    if isinstance(members, str):
        yield name, config.get("dataset_name")
        return
    for member in members:
        yield from _members(index, member)


def no_such_language(name: str, language: Language) -> TextUnavailable:
    """Returns the error for a language that a set lacks, which names the sets that have it."""
    others = [other for other in ("belebele", "sib200", "flores") if other in language.corpora and other != name]
    others += [] if language.code == "en" else OFFLINE_TASKS
    return TextUnavailable(
        f"{TASKS[name].title} has no text in {language.name}. Of the other sets, {', '.join(others)} have it."
    )


def _topics(folder: str, language: Language, shots: int | None) -> dict:
    """Defines SIB-200, the topic of a sentence among seven, which lm-eval has for African languages only."""
    if "sib200" not in language.corpora:
        raise no_such_language("sib200", language)
    try:
        corpus = HubText("sib200", folder, language)
        tables = {split: corpus.table(split) for split in ("test", *["train"] * bool(shots))}
    except ValueError as error:  # the local copy lacks the language
        raise TextUnavailable(f"{error} Copy its files, or leave sib200 out.") from error
    return {
        "task": f"sib200_{language.code_for('sib200')}",
        "custom_dataset": lambda **_: tables,
        "test_split": "test",
        "fewshot_split": "train" if shots else None,
        **likelihood_task("Text: {{text}}\nTopic:", list(_TOPICS), "category"),
    }


# --- tasks from the declaration ---


_OPTIONS = 4
_NEAR = 6
_ROUNDS = 4


def parallel_paragraphs(lang: str, split: str, source: str = "udhr") -> list[dict[str, str]]:
    """Pairs the declaration's paragraphs in a language with the English ones.

    An article with different numbers of paragraphs in the two languages is a single pair.

    Args:
        lang: Language code.
        split: "train", "validation" or "test".
        source: "udhr", or "udhr:FOLDER" for a local copy.

    Returns:
        Dicts of "text", in the language, and "english".
    """
    pairs = []
    articles = load_parallel(source, [lang, "en"], split)
    for text, english in zip(articles[lang], articles["en"], strict=True):
        first, second = text.split("\n"), english.split("\n")
        if len(first) != len(second):
            first, second = [" ".join(first)], [" ".join(second)]
        pairs += [{"text": a, "english": b} for a, b in zip(first, second, strict=True)]
    return pairs


def held_out_paragraphs(name: str, language: Language, folder: str, split: str = "test") -> list[dict[str, str]]:
    """Returns the pairs of a split for a task.

    Raises:
        TextUnavailable: For English itself, or if a local copy lacks the language.
    """
    if language.code == "en":
        raise TextUnavailable(f"{name} pairs a language with English: name another language than English.")
    try:
        return parallel_paragraphs(language.code, split, f"udhr:{folder}" if folder else "udhr")
    except ValueError as error:
        raise TextUnavailable(f"{error} Add its file to the copy, or leave {name} out.") from error


def match_questions(pairs: Sequence[dict[str, str]], seed: int = 0) -> list[dict]:
    """Makes questions: which of four English passages is the translation of a passage?

    The wrong ones are drawn from the six others whose length is nearest to the right one's, four times for each
    passage: with a single draw, the draw would cause half of the variance. Every passage is asked once before any is
    asked again.

    Args:
        pairs: Dicts of "text" and "english".
        seed: Seed of the draws.

    Returns:
        Dicts of "passage", "options" (four English passages), "answer" (index of the right one) and "unit" (number of
        the passage: its questions are not independent of each other).
    """
    if len(pairs) < _OPTIONS:
        raise InvalidInput(f"A question needs {_OPTIONS} passages to choose from; the text has {len(pairs)}.")
    questions = []
    for turn in range(_ROUNDS):
        for place, pair in enumerate(pairs):
            draw = random.Random(f"{seed} {turn} {place}")
            others = [i for i in range(len(pairs)) if i != place]
            others.sort(key=lambda i: abs(len(pairs[i]["english"]) - len(pair["english"])))
            chosen = [place, *draw.sample(others[:_NEAR], _OPTIONS - 1)]
            draw.shuffle(chosen)
            options = [pairs[i]["english"] for i in chosen]
            questions.append(
                {"passage": pair["text"], "options": options, "answer": chosen.index(place), "unit": place}
            )
    return questions


def match_task(language: Language, folder: str, shots: int | None, seed: int) -> dict:
    """Defines `udhr_match` for lm-eval: the likelihood of each English passage as the translation of the given one.

    The answer is the English passage whose likelihood the given passage raises most (mutual information), since some
    passages are likelier than others after any text.

    Raises:
        TextUnavailable: For English.
    """
    import datasets

    questions = match_questions(held_out_paragraphs("udhr_match", language, folder), seed)
    tables = {"test": datasets.Dataset.from_list(questions)}
    if shots:
        examples = match_questions(held_out_paragraphs("udhr_match", language, folder, "train"), seed)
        tables["train"] = datasets.Dataset.from_list(examples)
    return {
        "task": f"udhr_match_{language.code}",
        "custom_dataset": lambda **_: tables,
        "test_split": "test",
        "fewshot_split": "train" if shots else None,
        **likelihood_task(f"{language.name}: {{{{passage}}}}\nEnglish:", "options", "answer"),
    }


def likelihood_task(text: str, choices: str | list[str], target: str) -> dict:
    """Defines a task for lm-eval that is scored by the likelihood of each choice after a text.

    Args:
        text: Template of the text.
        choices: The choices, or the column that holds them.
        target: Column that holds the right one, or its index.
    """
    metrics = ("acc", "acc_norm", "acc_mutual_info")
    return {
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": choices,
        "doc_to_target": target,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
    }
