"""Translation between a language and English: few-shot prompts, and corpus BLEU and chrF++ with their signatures."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ssetools.errors import InvalidInput, TextUnavailable
from ssetools.evaluation.tasks.questions import Request, held_out_paragraphs
from ssetools.languages import UNSPACED_SCRIPTS, get_language
from ssetools.text.sources import load_parallel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOTS = 4
"""Translated examples before each text, unless another number is asked for."""

_RESAMPLES = 1000
_LONGEST_EXAMPLE = 200  # characters of English: the examples only show what is asked
_ROOM = 1.5  # tokens of a translation at most, relative to the longest reference


def translation_pairs(request: Request) -> tuple[list[dict], list[dict]]:
    """Loads the pairs that examples are taken from, and the texts to translate.

    Of the declaration, examples are from articles of the training split, and texts from the test split, the shortest
    first, so that few of them cost little. Of FLORES, examples are from dev and texts from devtest.

    Returns:
        Examples and texts: dicts of "text" and "english".

    Raises:
        TextUnavailable: For English, or if the set or the language is unavailable.
    """
    name, lang = request.name, request.language.code
    if name == "udhr_translate":
        examples, texts = (held_out_paragraphs(request, split) for split in ("train", "test"))
        return examples, sorted(texts, key=lambda pair: len(pair["text"]) + len(pair["english"]))
    if lang == "en":
        raise TextUnavailable(f"{name} translates into English and out of it: name another language than English.")
    try:
        splits = [load_parallel(request.source(name), [lang, "en"], split) for split in ("validation", "test")]
    except ValueError as error:
        raise TextUnavailable(f"{error} udhr_translate has it.") from error
    examples, texts = ([{"text": a, "english": b} for a, b in zip(x[lang], x["en"], strict=True)] for x in splits)
    return examples, texts


def translation_tasks(request: Request, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict]:
    """Defines both directions of a translation task for lm-eval. All texts have the same examples.

    Args:
        request: The task.
        tokenizer: The model's tokenizer, which gives the longest length of a translation.

    Returns:
        By direction ("yo-en", "en-yo"), the task's definition. Its documents have "source" and "target".
    """
    import datasets

    language, shots = request.language, SHOTS if request.shots is None else request.shots
    examples, texts = translation_pairs(request)
    texts = texts[: request.limit]
    short = [pair for pair in examples if len(pair["english"]) <= _LONGEST_EXAMPLE]
    if len(short) < shots:
        raise InvalidInput(
            f"{request.name} has {len(short)} examples of at most {_LONGEST_EXAMPLE} characters; asked for {shots}: use "
            "fewer shots."
        )
    shown = random.Random(request.seed).sample(short, shots)
    names, codes = {"text": language.name, "english": "English"}, {"text": language.code, "english": "en"}
    tasks = {}
    for source, target in (("text", "english"), ("english", "text")):
        longest = max(len(tokenizer(pair[target], add_special_tokens=False)["input_ids"]) for pair in texts)
        tables = {
            split: datasets.Dataset.from_list([{"source": pair[source], "target": pair[target]} for pair in pairs])
            for split, pairs in (("examples", shown), ("test", texts))
            if pairs
        }
        tasks[f"{codes[source]}-{codes[target]}"] = {
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


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str], shown: Sequence[str], target: str
) -> dict:
    """Scores translations as a corpus.

    Args:
        hypotheses: Translations.
        references: Reference translations.
        sources: Source texts.
        shown: Translations of the examples before each text.
        target: Code of the language of the translations.

    Returns:
        "chrF++" and "BLEU", each with "value", its 95% interval "low" and "high" (bootstrap over texts; None where the
        score is zero), "floor" (the best score without translating: copying every source, or repeating one example
        each time, as models that cannot translate do) and "signature".
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

    Returns:
        For "chrF++" and "BLEU" the "difference" (positive is better) and "p", the probability of a difference as large
        if both were equally good.
    """
    from sacrebleu.significance import PairedTest

    metrics = _metrics(target)
    systems: list[tuple[str, Sequence[str]]] = [("before", list(before)), ("after", list(after))]
    _, results = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=_RESAMPLES)()
    del results["System"]  # the names; the others are a list for each metric, in the order of `metrics`
    changes = {}
    for name, (old, new) in zip(metrics, cast(Any, results.values()), strict=True):
        # sacrebleu finds a difference of exactly 0 significant.
        p = new.p_value if new.score != old.score else 1.0
        changes[name] = {"difference": new.score - old.score, "p": p}
    return changes


def _metrics(target: str) -> dict:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # BLEU counts words, which these scripts do not separate; chrF++ works without.
    script = get_language(target).script
    words = "zh" if script in ("Hans", "Hant", "Hani") else "char" if script in UNSPACED_SCRIPTS else "13a"
    return {"chrF++": CHRF(word_order=2), "BLEU": BLEU(tokenize=words)}
