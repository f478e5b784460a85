"""Shared fixtures, and the rule that only tests marked `network` reach other machines."""

from __future__ import annotations

import socket
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Makes a test without the mark `network` run as on a machine without a network, its fixtures included."""
    from ssetools.text import embedded

    if item.get_closest_marker("network"):
        return (yield)
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def check(host: object) -> None:
        if host not in ("localhost", "127.0.0.1", "::1", None):
            raise OSError(f"{item.name} reached for {host}, and is not marked network.")

    def connect_locally(self, address):
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect(self, address)

    def look_up_locally(host, *args, **options):
        check(host)
        return look_up(host, *args, **options)

    def fetch_nothing(command, *args):
        check(" ".join(command))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        patch.setattr(socket, "getaddrinfo", look_up_locally)
        patch.setattr(embedded, "_run", fetch_nothing)  # npm and apt
        return (yield)


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: with two, handing over work costs more than the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)
