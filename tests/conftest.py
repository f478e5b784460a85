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


@pytest.fixture
def study(tmp_path, word_tokenizer, monkeypatch):
    """A tiny model and text in made-up languages, in the working folder; returns model, tokenizer and plan."""
    import made_up_study

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("ssetools.text.sources.Source.multilingual", True)  # the folder has every language
    return made_up_study.made(word_tokenizer)


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: with two, handing over work costs more than the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)
