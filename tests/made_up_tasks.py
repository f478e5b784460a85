"""Made-up tasks in the hub's layouts, in words that the tokenizer of these tests knows."""

from __future__ import annotations

import random
from pathlib import Path

import hub_layouts
import torch

TOPICS = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
_WORDS = ["A", "B", "C", "D", "Text:", "Topic:", "Answer:", "English:", "Yoruba:", *TOPICS]
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "\n"]


def task_tokenizer():
    """Returns a tokenizer of 97 words that knows letters and topics, so that choices differ; BOS is 2."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *_WORDS]
    words += [f"w{i}" for i in range(97 - len(words))]
    one = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    one.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=one, **special)


def words(count: int, seed) -> str:
    """Returns some words; the same for the same seed."""
    draw = random.Random(str(seed))
    return " ".join(f"w{draw.randrange(60)}" for _ in range(count))


def likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Scores a continuation the plain way: one text, all logits."""
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
    ids = torch.tensor([[tokenizer.bos_token_id, *before, *after]])
    with torch.no_grad():
        shares = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return sum(shares[len(before) + i, token].item() for i, token in enumerate(after))


def belebele_rows(count: int = 6) -> list[dict]:
    """Returns questions of BELEBELE's shape."""
    return [
        {
            "flores_passage": words(9, f"p{i}"),
            "question": words(4, f"q{i}"),
            **{f"mc_answer{k}": words(3, f"{i} {k}") for k in (1, 2, 3, 4)},
            "correct_answer_num": str(i % 4 + 1),
        }
        for i in range(count)
    ]


def belebele(folder: Path, code: str = "yor_Latn") -> str:
    """Writes BELEBELE, and returns the task's name with the folder."""
    return f"belebele:{hub_layouts.questions(folder, {code: {'test': belebele_rows()}})}"


def declaration(folder: Path) -> str:
    """Writes the declaration in two languages, two paragraphs to an article: eighteen in the test split."""
    texts = {
        code: [[words(6 + (i + k) % 5, f"{code} {i} {k}") for k in range(2)] for i in range(31)]
        for code in ("yor", "eng")
    }
    return hub_layouts.declaration(folder, texts)
