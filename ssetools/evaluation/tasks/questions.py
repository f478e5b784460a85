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
        title="Global PIQA",
        repository="mrlbenchmarks/global-piqa-nonparallel",
        built_in="global_piqa_nonparallel_cloze_{tag}",
        folder="global_piqa/nonparallel_cloze",
        measure="acc_norm",
    ),
    **{
        f"m_{name}": TaskSet(
            f"Multilingual {title}", f"alexandrainst/m_{name}", built_in, f"okapi/{name}_multilingual", measure
        )
        for name, title, built_in, measure in (
            ("mmlu", "MMLU", "m_mmlu_{code}", "acc"),
            ("arc", "ARC", "arc_{code}", "acc_norm"),
            ("hellaswag", "HellaSwag", "hellaswag_{code}", "acc_norm"),
        )
    },
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


@dataclass(frozen=True)
class Request:
    """One set of tasks in one language, as `evaluate` asks for it.

    Attributes:
        name: Name in `TASKS`.
        folder: A local copy in the hub's layout, or "".
        language: The language.
        limit: Questions of each task, or texts to translate, at most; None takes all.
        shots: Answered examples before each; None takes the task's own number.
        seed: Seed of the wrong answers and of the examples.
    """

    name: str
    folder: str
    language: Language
    limit: int | None = None
    shots: int | None = None
    seed: int = 0

    @property
    def task_set(self) -> TaskSet:
        """The set."""
        return TASKS[self.name]

    def source(self, name: str) -> str:
        """Returns the source of text of that name, for `load_parallel`."""
        return f"{name}:{self.folder}" if self.folder else name


def parse_tasks(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """Splits "NAME" and "NAME:FOLDER" into names and folders of local copies ("" for none).

    Raises:
        ValueError: For an unknown name, a folder that does not exist, or a name given twice.
    """
    tasks = tasks.split() if isinstance(tasks, str) else list(tasks)
    pairs = [split_name(task) for task in (TASKS if tasks == ["all"] else tasks)]
    for name, folder in pairs:
        if name not in TASKS:
            raise InvalidInput(f"Unknown task {name!r}: use {', '.join(TASKS)}, or NAME:FOLDER for a local copy.")
        if folder and not Path(folder).is_dir():
            raise InvalidInput(f"Task {name!r} names a folder that does not exist: {folder}.")
    names = [name for name, _ in pairs]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"Name one task or several, each once; got {' '.join(names) or 'none'}.")
    return pairs


def question_tasks(request: Request) -> Mapping:
    """Loads the tasks of a set of questions with their data.

    Returns:
        What lm-eval's `TaskManager.load` returns: tasks of lm-eval by name, under "tasks".

    Raises:
        TextUnavailable: If the set or the language is unavailable; the message has the remedy.
    """
    from lm_eval.tasks import TaskManager

    if request.task_set.built_in:
        tasks = _built_in(request)
    else:
        definition = match_task(request) if request.name == "udhr_match" else _topics(request)
        tasks = TaskManager(include_defaults=False).load([definition])
    for task in tasks["tasks"].values():
        config = task.config
        if request.shots and not (config.fewshot_split or config.training_split or config.validation_split):
            raise TextUnavailable(f"{request.task_set.title} has no examples beside its questions: use shots=0.")
    return tasks


def _built_in(request: Request) -> Mapping:
    """Loads a task or group of lm-eval from its definition alone: indexing all tasks of lm-eval takes half a minute."""
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    task_set, language = request.task_set, request.language
    codes = {"code": language.code_for(request.name), "tag": f"{language.iso639_3}_{language.script}".lower()}
    definitions = Path(lm_eval.tasks.__file__).parent / task_set.folder.format(**codes)
    built_in = task_set.built_in.format(**codes)
    manager = TaskManager(include_path=definitions, include_defaults=False) if definitions.is_dir() else None
    if manager is None or built_in not in manager.all_tasks:
        raise _missing_language(request)
    if not request.folder:
        hub_reachable()
    place = request.folder or task_set.repository
    members = dict(_members(manager.task_index, built_in))
    # Loaded before lm-eval loads it, so that only errors of the data are reported as unavailable.
    try:
        with unavailable(task_set, request.folder, request.name):
            for config in dict.fromkeys(members.values()):
                datasets.load_dataset(place, config, **fresh(request.folder))
    except InvalidInput as error:  # a local copy without the language, or damaged
        raise TextUnavailable(str(error)) from error
    tasks = [{"task": member, "dataset_path": place} for member in members]
    return manager.load([{"group": request.name, "task": tasks}])


def _members(index: Mapping, name: str) -> Iterator[tuple[str, str | None]]:
    """Yields a task, or every task of a group, with the configuration of the data set that it reads."""
    entry: Any = index[name]
    config: Any = entry.cfg or {"task": sorted(entry.tags)}
    if isinstance(config["task"], str):
        yield name, config.get("dataset_name")
        return
    for member in config["task"]:
        yield from _members(index, member)


def _missing_language(request: Request) -> TextUnavailable:
    """Returns the error for a language that a set lacks, which names the sets that have it."""
    others = [x for x in ("belebele", "sib200", "flores") if x in request.language.corpora and x != request.name]
    others += [] if request.language.code == "en" else OFFLINE_TASKS
    return TextUnavailable(
        f"{request.task_set.title} has no text in {request.language.name}. Of the other sets, {', '.join(others)} have it."
    )


def _topics(request: Request) -> dict:
    """Defines SIB-200, the topic of a sentence among seven, which lm-eval has for African languages only."""
    language, splits = request.language, ("test", "train") if request.shots else ("test",)
    if "sib200" not in language.corpora:
        raise _missing_language(request)
    try:
        corpus = HubText("sib200", request.folder, language)
        tables = {split: corpus.table(split) for split in splits}
    except ValueError as error:  # the local copy lacks the language
        raise TextUnavailable(f"{error} Copy its files, or leave sib200 out.") from error
    name = f"sib200_{language.code_for('sib200')}"
    return _likelihood_task(name, tables, "Text: {{text}}\nTopic:", list(_TOPICS), "category")


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


def held_out_paragraphs(request: Request, split: str = "test") -> list[dict[str, str]]:
    """Returns the pairs of a split for a task.

    Raises:
        TextUnavailable: For English itself, or if a local copy lacks the language.
    """
    if request.language.code == "en":
        raise TextUnavailable(f"{request.name} pairs a language with English: name another language than English.")
    try:
        return parallel_paragraphs(request.language.code, split, request.source("udhr"))
    except ValueError as error:
        raise TextUnavailable(f"{error} Add its file to the copy, or leave {request.name} out.") from error


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


def match_task(request: Request) -> dict:
    """Defines `udhr_match` for lm-eval: the likelihood of each English passage as the translation of the given one.

    The answer is the English passage whose likelihood the given passage raises most (mutual information), since some
    passages are likelier than others after any text.

    Raises:
        TextUnavailable: For English.
    """
    import datasets

    tables = {}
    for split in ("test", "train") if request.shots else ("test",):
        questions = match_questions(held_out_paragraphs(request, split), request.seed)
        tables[split] = datasets.Dataset.from_list(questions)
    prompt = f"{request.language.name}: {{{{passage}}}}\nEnglish:"
    return _likelihood_task(f"udhr_match_{request.language.code}", tables, prompt, "options", "answer")


def _likelihood_task(name: str, tables: Mapping, prompt: str, choices: str | list[str], target: str) -> dict:
    """Defines a task for lm-eval that is scored by the likelihood of each choice after a prompt.

    `choices` may name a column, `target` names the column of the right choice or of its index.
    """
    metrics = ("acc", "acc_norm", "acc_mutual_info")
    return {
        "task": name,
        "custom_dataset": lambda **_: tables,
        "test_split": "test",
        "fewshot_split": "train" if "train" in tables else None,
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_choice": choices,
        "doc_to_target": target,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
    }
