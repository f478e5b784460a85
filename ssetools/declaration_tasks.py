"""Tasks that need no hub, made from the declaration: its paragraphs say the same in every language."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ssetools.corpora import load_parallel
from ssetools.hub_corpora import TextUnavailable
from ssetools.languages import Language

_OPTIONS = 4
_NEAR = 6
_ROUNDS = 4


def parallel_paragraphs(lang: str, split: str, source: str = "udhr") -> list[dict[str, str]]:
    """Pairs the declaration's paragraphs in a language with the English ones.

    Where an article has other paragraphs in the two languages, it is one pair as a whole.

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
        own, theirs = text.split("\n"), english.split("\n")
        if len(own) != len(theirs):
            own, theirs = [" ".join(own)], [" ".join(theirs)]
        pairs += [{"text": a, "english": b} for a, b in zip(own, theirs, strict=True)]
    return pairs


def held_out_paragraphs(name: str, language: Language, folder: str, split: str = "test") -> list[dict[str, str]]:
    """Returns the pairs of a split for a task.

    Raises:
        TextUnavailable: For English, which has nothing to be paired with, or if a local copy lacks the language.
    """
    if language.code == "en":
        raise TextUnavailable(f"{name} sets a language against English: name another language than English.")
    try:
        return parallel_paragraphs(language.code, split, f"udhr:{folder}" if folder else "udhr")
    except ValueError as error:
        raise TextUnavailable(f"{error} Add its file to the copy, or leave {name} out.") from error


def match_questions(pairs: Sequence[dict[str, str]], seed: int = 0) -> list[dict]:
    """Asks of each passage which of four English ones says the same.

    The wrong ones are drawn from the six others whose length is nearest to the right one's, four times for each
    passage: with one draw, luck in the draw would be half of the noise. Every passage is asked once before any is
    asked again.

    Args:
        pairs: Dicts of "text" and "english".
        seed: Of the draw; each question has its own.

    Returns:
        Dicts of "passage", "options" (four English passages), "answer" (index of the right one) and "unit" (number of
        the passage: its questions are not independent of each other).
    """
    if len(pairs) < _OPTIONS:
        raise ValueError(f"A question needs {_OPTIONS} passages to choose from; there are {len(pairs)}.")
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

    What counts is how much likelier the passage makes it (mutual information): alone, some articles are likelier than
    others whatever stands before them.

    Raises:
        TextUnavailable: For English.
    """
    import datasets

    asked = match_questions(held_out_paragraphs("udhr_match", language, folder), seed)
    tables = {"test": datasets.Dataset.from_list(asked)}
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
    """Returns what lm-eval is told of a task that is scored by the likelihood of each choice after a text.

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
