"""Shared fixtures, and the rule that only tests marked `network` reach other machines."""

from __future__ import annotations

import socket
import sys
import tempfile
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


_OFFLINE = pytest.StashKey[dict]()


def pytest_configure(config):
    """Makes the environment of a machine that has no network and nothing in the cache."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    apt = Path(folder.name, "apt.conf")
    apt.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n')
    config.stash[_OFFLINE] = {
        "APT_CONFIG": str(apt),
        "HF_HUB_OFFLINE": "1",
        "npm_config_cache": folder.name,
        "npm_config_offline": "true",
        "SSETOOLS_HOME": str(Path(folder.name, "home")),
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Runs a test that is not marked `network` on such a machine; a slow one finds the converted model in the cache."""
    if item.get_closest_marker("network"):
        return (yield)
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def check(host):
        if host not in ("localhost", "127.0.0.1", "::1", None):
            raise OSError(f"{item.name} reached for {host}, and is not marked network.")

    def connect_locally(self, address):
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect(self, address)

    def look_up_locally(host, *args, **options):
        check(host)
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        patch.setattr(socket, "getaddrinfo", look_up_locally)
        for name, value in item.config.stash[_OFFLINE].items():
            if name != "SSETOOLS_HOME" or not item.get_closest_marker("slow"):
                patch.setenv(name, value)
        return (yield)


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: with two, handing over work costs more than the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)
