"""What each task asks: its data, its languages, and its definition for lm-eval."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssetools.errors import IncompleteText, InvalidInput, NoTextInLanguage
from ssetools.languages import Language
from ssetools.text.hub import FRESH, HUB_CORPORA, HubText, hub_reachable, revision_of, unavailable
from ssetools.text.sources import Source, describe_source, load_parallel, split_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskSet:
    """A set of tasks: `evaluate` describes each."""

    title: str
    repository: str = ""  # on the hub; "" for sets that are made from the declaration
    built_in: str = ""  # name in lm-eval, if it has the set; {code} is the language's in this set, {tag} yor_latn
    folder: str = ""  # of the definition in lm-eval
    measure: str = "acc"
    english: bool = False  # for every language: what a model kept
    gated: bool = False  # whether its terms must be accepted on the hub

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
    "m_mmlu": TaskSet("Multilingual MMLU", "alexandrainst/m_mmlu", "m_mmlu_{code}", "okapi/mmlu_multilingual"),
    "m_arc": TaskSet("Multilingual ARC", "alexandrainst/m_arc", "arc_{code}", "okapi/arc_multilingual", "acc_norm"),
    "m_hellaswag": TaskSet(
        title="Multilingual HellaSwag",
        repository="alexandrainst/m_hellaswag",
        built_in="hellaswag_{code}",
        folder="okapi/hellaswag_multilingual",
        measure="acc_norm",
    ),
    "mmlu": TaskSet("MMLU", "cais/mmlu", "mmlu", "mmlu/default", english=True),
    "arc_easy": TaskSet("ARC, easy", "allenai/ai2_arc", "arc_easy", "arc", english=True),
    "arc_challenge": TaskSet("ARC, challenge", "allenai/ai2_arc", "arc_challenge", "arc", "acc_norm", english=True),
    "hellaswag": TaskSet("HellaSwag", "Rowan/hellaswag", "hellaswag", "hellaswag", "acc_norm", english=True),
    # The original, ybisk/piqa, is a script that `datasets` no longer runs; this is the copy that lm-eval uses.
    "piqa": TaskSet("PIQA", "baber/piqa", "piqa", "piqa", "acc_norm", english=True),
    "winogrande": TaskSet("WinoGrande", "allenai/winogrande", "winogrande", "winogrande", english=True),
}

OFFLINE_TASKS = ("udhr_match", "udhr_translate")  # need no hub
_TOPICS = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
_OPTIONS, _NEAR, _ROUNDS = 4, 6, 4  # of a question of udhr_match
_SHOTS = 4  # translated examples before each text, unless another number is asked for
_LONGEST_EXAMPLE = 200  # characters of English: the examples only show what is asked
_ROOM = 1.5  # tokens of a translation at most, relative to the longest reference


@dataclass(frozen=True)
class Request:
    """A set of tasks in one language, as `evaluate` asks for it, with its arguments."""

    name: str
    folder: str
    language: Language
    limit: int | None = None
    shots: int | None = None
    seed: int = 0

    @property
    def source(self) -> str:
        """The source of its text, for `load_parallel`."""
        return str(Source("udhr" if self.name in OFFLINE_TASKS else self.name, self.folder))

    def revision(self) -> str | dict[str, str | None]:
        """Returns what identifies its data."""
        if self.name in OFFLINE_TASKS:
            return describe_source(self.source, self.language.code)
        return revision_of(TASKS[self.name], self.folder, self.name)


def parse_tasks(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """Splits "NAME" and "NAME:FOLDER" into names and folders of local copies ("" for none)."""
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


def load_tasks(request: Request, tokenizer: PreTrainedTokenizerBase) -> dict[str, Mapping]:
    """Loads what lm-eval runs for each row of the results: a row for questions, one for each direction of translation.

    A row is what lm-eval's `TaskManager.load` returns: tasks of lm-eval by name, under "tasks".
    """
    from lm_eval.tasks import TaskManager

    name, language = request.name, request.language
    task_set = TASKS[name]
    if language.code == "en" and (task_set.translates or name == "udhr_match"):
        raise NoTextInLanguage(f"{name} pairs a language with English: name another language than English.")
    try:
        if task_set.built_in:
            loaded: dict[str, Mapping] = {name: _built_in(request)}
        else:
            define = {"udhr_match": _match, "sib200": _topics}.get(name, _translations)
            manager = TaskManager(include_defaults=False)
            loaded = {row: manager.load([task]) for row, task in define(request, tokenizer).items()}
    except NoTextInLanguage as error:
        others = [x for x in ("belebele", "sib200", "flores") if x in language.corpora and x != name]
        others += [] if language.code == "en" or name in OFFLINE_TASKS else OFFLINE_TASKS
        also = f" Of the other sets, {', '.join(others)} have it." if others else ""
        raise NoTextInLanguage(f"{error}{also}") from error
    configs = [task.config for row in loaded.values() for task in row["tasks"].values()]
    if request.shots and not all(x.fewshot_split or x.training_split or x.validation_split for x in configs):
        raise IncompleteText(f"{task_set.title} has no examples beside its questions: use shots=0.")
    return loaded


def _built_in(request: Request) -> Mapping:
    """Loads a task or group of lm-eval from its definition alone: indexing all tasks of lm-eval takes half a minute."""
    import datasets
    import lm_eval.tasks

    task_set, language = TASKS[request.name], request.language
    codes = {"code": language.code_for(request.name), "tag": f"{language.iso639_3}_{language.script}".lower()}
    definitions = Path(lm_eval.tasks.__file__).parent / task_set.folder.format(**codes)
    built_in = task_set.built_in.format(**codes)
    folders: list[str | Path] = [definitions] if definitions.is_dir() else []
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    if built_in not in manager.all_tasks:
        raise NoTextInLanguage(f"{task_set.title} has no text in {language.name}.")
    if not request.folder:
        hub_reachable()
    place = request.folder or task_set.repository
    members = dict(_members(manager.task_index, built_in))
    # Loaded before lm-eval loads it, so that only errors of the data are reported as unavailable.
    with unavailable(task_set, request.folder, request.name):
        for config in dict.fromkeys(members.values()):
            datasets.load_dataset(place, config, **(FRESH if request.folder else {}))
    tasks = [{"task": member, "dataset_path": place} for member in members]
    return manager.load([{"group": request.name, "task": tasks}])


def _members(index: Mapping, name: str) -> Iterator[tuple[str, str | None]]:
    """Yields a task, or every task of a group, with the configuration of the data set that it reads."""
    entry: Any = index[name]
    config: Any = entry.cfg or {"task": sorted(entry.tags)}
    if isinstance(config["task"], str):
        yield name, config.get("dataset_name")
    else:
        for member in config["task"]:
            yield from _members(index, member)


# --- questions that lm-eval lacks ---


def _topics(request: Request, _: object) -> dict[str, dict]:
    """Defines SIB-200, the topic of a sentence among seven, which lm-eval has for African languages only."""
    corpus = HubText("sib200", request.folder, request.language)
    return _questions(request, corpus.load, "Text: {{text}}\nTopic:", _TOPICS, "category")


def _match(request: Request, _: object) -> dict[str, dict]:
    """Defines `udhr_match`: which English passage's likelihood does the given passage raise most (mutual information)?

    Likelihood alone would not do, since some passages are likelier than others after any text.
    """
    import datasets

    def table(split: str) -> datasets.Dataset:
        pairs = parallel_paragraphs(request.language.code, split, request.source)
        return datasets.Dataset.from_list(match_questions(pairs, request.seed))

    return _questions(request, table, f"{request.language.name}: {{{{passage}}}}\nEnglish:", "options", "answer")


def _questions(
    request: Request, table: Callable[[str], Any], prompt: str, choices: str | list[str], target: str
) -> dict[str, dict]:
    """Defines a task that is scored by the likelihood of each choice after a prompt.

    `choices` may name a column, `target` names the column of the right choice or of its index.
    """
    tables = {split: table(split) for split in (("test", "train") if request.shots else ("test",))}
    metrics = ("acc", "acc_norm", "acc_mutual_info")
    return {
        request.name: {
            "task": f"{request.name}_{request.language.code_for(request.name)}",
            "custom_dataset": lambda **_: tables,
            "test_split": "test",
            "fewshot_split": "train" if "train" in tables else None,
            "output_type": "multiple_choice",
            "doc_to_text": prompt,
            "doc_to_choice": choices,
            "doc_to_target": target,
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
        }
    }


def parallel_paragraphs(lang: str, split: str, source: str = "udhr") -> list[dict[str, str]]:
    """Pairs the declaration's paragraphs in a language ("text") with the English ones ("english").

    An article with different numbers of paragraphs in the two languages is a single pair.
    """
    pairs = []
    articles = load_parallel(source, [lang, "en"], split)
    for text, english in zip(articles[lang], articles["en"], strict=True):
        first, second = text.split("\n"), english.split("\n")
        if len(first) != len(second):
            first, second = [" ".join(first)], [" ".join(second)]
        pairs += [{"text": a, "english": b} for a, b in zip(first, second, strict=True)]
    return pairs


def match_questions(pairs: Sequence[dict[str, str]], seed: int = 0) -> list[dict]:
    """Makes questions ("passage", "options", "answer"): which of four English passages is the passage's translation?

    The wrong ones are drawn from the six others whose length is nearest to the right one's, four times for each
    passage: with a single draw, the draw would cause half of the variance. Every passage is asked once before any is
    asked again. "unit" is the number of the passage: its questions are not independent of each other.
    """
    if len(pairs) < _OPTIONS:
        raise IncompleteText(f"A question needs {_OPTIONS} passages to choose from; the text has {len(pairs)}.")
    questions = []
    for turn in range(_ROUNDS):
        for place, pair in enumerate(pairs):
            draw = random.Random(f"{seed} {turn} {place}")
            others = [i for i in range(len(pairs)) if i != place]
            others.sort(key=lambda i: abs(len(pairs[i]["english"]) - len(pair["english"])))
            chosen = [place, *draw.sample(others[:_NEAR], _OPTIONS - 1)]
            draw.shuffle(chosen)
            question = {"passage": pair["text"], "options": [pairs[i]["english"] for i in chosen]}
            questions.append({**question, "answer": chosen.index(place), "unit": place})
    return questions


# --- translation ---


def _translations(request: Request, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict]:
    """Defines both directions of a translation task ("flores yo-en"). All texts have the same examples.

    Of the declaration, examples are from the training split, and texts from the test split, the shortest first, so that
    few of them cost little. Of FLORES, examples are from dev and texts from devtest.
    """
    import datasets

    lang, shots = request.language.code, _SHOTS if request.shots is None else request.shots
    if request.name == "udhr_translate":
        examples, texts = (parallel_paragraphs(lang, split, request.source) for split in ("train", "test"))
        texts.sort(key=lambda pair: len(pair["text"]) + len(pair["english"]))
    else:
        splits = [load_parallel(request.source, [lang, "en"], split) for split in ("validation", "test")]
        examples, texts = ([{"text": a, "english": b} for a, b in zip(x[lang], x["en"], strict=True)] for x in splits)
    short = [pair for pair in examples if len(pair["english"]) <= _LONGEST_EXAMPLE]
    if len(short) < shots:
        have = f"{request.name} has {len(short)} examples of at most {_LONGEST_EXAMPLE} characters"
        raise InvalidInput(f"{have}; asked for {shots}: use fewer shots.")
    pairs = {"examples": random.Random(request.seed).sample(short, shots), "test": texts[: request.limit]}
    names, codes = {"text": request.language.name, "english": "English"}, {"text": lang, "english": "en"}
    tasks = {}
    for source, target in (("text", "english"), ("english", "text")):
        longest = max(len(tokenizer(x[target], add_special_tokens=False)["input_ids"]) for x in pairs["test"])
        tables = {
            split: datasets.Dataset.from_list([{"source": x[source], "target": x[target]} for x in of_split])
            for split, of_split in pairs.items()
            if of_split
        }
        tasks[f"{request.name} {codes[source]}-{codes[target]}"] = {
            "task": f"{request.name}_{codes[source]}_{codes[target]}",
            "output_type": "generate_until",
            "custom_dataset": lambda tables=tables, **_: tables,
            "test_split": "test",
            "fewshot_split": "examples" if shots else None,
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "doc_to_text": f"{names[source]}: {{{{source}}}}\n{names[target]}:",
            "doc_to_target": "target",
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": int(_ROOM * longest) + 1},
            "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
        }
    return tasks
