"""Shared fixtures: a word tokenizer that needs no download, and caches that no test shares with the user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def word_tokenizer():
    """Returns a tokenizer of 97 words ("w3" is 3), with BOS 2, padding 0 and newline 1."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "\n": 1, "<bos>": 2, **{f"w{i}": i for i in range(3, 96)}, "<unk>": 96}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: with two, handing over work costs more than the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)
