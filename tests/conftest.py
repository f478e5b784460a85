"""Shared fixtures: a word tokenizer that needs no download, and one thread for tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "book"))  # the scripts that make and check the book


@pytest.fixture(scope="session")
def word_tokenizer():
    """Returns the tokenizer of the tiny models."""
    import families

    return families.word_tokenizer()


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: with two, handing over work costs more than the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)
