"""Translation between a language and English: few-shot prompts, and corpus BLEU and chrF++ with their signatures."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from ssetools.errors import InvalidInput, TextUnavailable
from ssetools.evaluation.tasks.questions import held_out_paragraphs
from ssetools.languages import Language
from ssetools.text.sources import load_parallel

SHOTS = 4
"""Translated examples before each text, unless told otherwise."""

_RESAMPLES = 1000
_LONGEST_EXAMPLE = 200  # characters of English: the examples only show what is asked
_ROOM = 1.5  # tokens a translation may take, relative to the longest reference
# BLEU counts words, and these languages write none apart; chrF++ needs no such choice.
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "char"}


def translation_pairs(name: str, folder: str, language: Language) -> tuple[list[dict], list[dict]]:
    """Loads what is translated, and what examples are taken from.

    Args:
        name: "udhr_translate" (examples from the articles of the training split, texts from the test split, the shortest
            first, so that some of them cost little), "flores" or "flores_plus" (dev and devtest).
        folder: A local copy, or "".
        language: The language.

    Returns:
        Examples and texts: dicts of "text" and "english".

    Raises:
        TextUnavailable: For English, or if the set cannot be had, or not in this language.
    """
    if name == "udhr_translate":
        examples, texts = (held_out_paragraphs(name, language, folder, split) for split in ("train", "test"))
        return examples, sorted(texts, key=lambda pair: len(pair["text"]) + len(pair["english"]))
    if language.code == "en":
        raise TextUnavailable(f"{name} translates into English and out of it: name another language than English.")
    source = f"{name}:{folder}" if folder else name
    try:
        found = [load_parallel(source, [language.code, "en"], split) for split in ("validation", "test")]
    except ValueError as error:
        raise TextUnavailable(f"{error} udhr_translate has it.") from error
    examples, texts = (
        [{"text": a, "english": b} for a, b in zip(x[language.code], x["en"], strict=True)] for x in found
    )
    return examples, texts


def translation_tasks(
    name: str, folder: str, language: Language, tokenizer, limit: int | None, shots: int | None, seed: int
) -> dict[str, dict]:
    """Defines both directions of a translation task for lm-eval.

    Args:
        name: As in `translation_pairs`.
        folder: As there.
        language: The language.
        tokenizer: Of the model, to know how long a translation may become.
        limit: Texts at most.
        shots: Examples before each text; None takes `SHOTS`.
        seed: Of the choice of examples, which are the same for every text.

    Returns:
        By direction ("yo-en", "en-yo"), what lm-eval is told. Its documents have "source" and "target".
    """
    import datasets

    examples, texts = translation_pairs(name, folder, language)
    texts = texts[:limit]
    shots = SHOTS if shots is None else shots
    short = [pair for pair in examples if len(pair["english"]) <= _LONGEST_EXAMPLE]
    if len(short) < shots:
        raise InvalidInput(f"{name} has {len(short)} examples that are short enough; asked for {shots}.")
    shown = random.Random(seed).sample(short, shots)
    tasks = {}
    for source, target in (("text", "english"), ("english", "text")):
        names = {"text": language.name, "english": "English"}
        codes = {"text": language.code, "english": "en"}
        longest = max(len(tokenizer(pair[target], add_special_tokens=False)["input_ids"]) for pair in texts)
        tables = {
            split: datasets.Dataset.from_list([{"source": pair[source], "target": pair[target]} for pair in pairs])
            for split, pairs in (("examples", shown), ("test", texts))
            if pairs
        }
        tasks[f"{codes[source]}-{codes[target]}"] = {
            "task": f"{name}_{codes[source]}_{codes[target]}",
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


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str], shown: Sequence[str], target: str
) -> dict:
    """Scores translations as a corpus.

    Args:
        hypotheses: Translations.
        references: What they should say.
        sources: What was translated.
        shown: Translations of the examples before each text.
        target: Code of the language that they are in.

    Returns:
        "chrF++" and "BLEU", each with "value", its 95% interval "low" and "high" (bootstrap over texts; None where the
        score is zero), "floor" (the best score without translating: every source as it is, or one example said each
        time, which is what a model does that cannot translate) and "signature".
    """
    found = {}
    for name, metric in _metrics(target).items():
        idle = [list(sources), *([text] * len(references) for text in shown)]
        floor = max(metric.corpus_score(answers, [list(references)]).score for answers in idle)
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=_RESAMPLES)
        signature = metric.get_signature().format()
        half = json.loads(score.format(width=4, signature=signature, is_json=True)).get("confidence_var")
        low, high = (None, None) if half is None else (max(score.score - half, 0.0), score.score + half)
        found[name] = {"value": score.score, "low": low, "high": high, "floor": floor, "signature": signature}
    return found


def compare_translations(before: Sequence[str], after: Sequence[str], references: Sequence[str], target: str) -> dict:
    """Compares two translations of the same texts with sacrebleu's paired bootstrap.

    Returns:
        For "chrF++" and "BLEU" the "difference" (positive is better) and "p", how often resampled texts would differ as
        much if both were equally good.
    """
    from sacrebleu.significance import PairedTest

    metrics = _metrics(target)
    systems = [("before", list(before)), ("after", list(after))]
    _, found = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=_RESAMPLES)()
    del found["System"]  # the names; then, under names of its own, a list for each metric in our order
    changes = {}
    for name, (one, other) in zip(metrics, found.values(), strict=True):
        # sacrebleu calls a difference of exactly nothing significant.
        p = other.p_value if other.score != one.score else 1.0
        changes[name] = {"difference": other.score - one.score, "p": p}
    return changes


def _metrics(target: str) -> dict:
    from sacrebleu.metrics import BLEU, CHRF

    return {"chrF++": CHRF(word_order=2), "BLEU": BLEU(tokenize=_BLEU_TOKENIZERS.get(target, "13a"))}
