"""One check before a file is reused: the same facts, whatever kind of file records them."""

import re

import pytest
import torch

from ssetools.errors import InvalidInput
from ssetools.files import kept, save_tensors, write_json
from ssetools.neurons.counts import ActivationProfile

FACTS = {"model": "tiny", "languages": ["yo", "is"], "tokens": 40}


def written(folder, kind):
    if kind == "folder":
        write_json(folder / "made" / "manifest.json", FACTS)
        return folder / "made"
    if kind == "json":
        return write_json(folder / "made.json", FACTS)
    return save_tensors(folder / "made.safetensors", {"counts": torch.zeros(2)}, FACTS)


@pytest.mark.parametrize("kind", ["json", "safetensors", "folder"])
def test_a_file_is_kept_only_if_its_facts_are_the_wanted_ones(tmp_path, kind):
    path = written(tmp_path, kind)
    assert kept(path, {"model": "tiny", "languages": ("yo", "is")})["tokens"] in (40, "40")
    assert kept(path, {"model": "other"}, on_change="remake") is None
    with pytest.raises(ValueError, match=r"made.*\(model: 'tiny', wanted 'other'; seed: None, wanted 1\). Delete it"):
        kept(path, {"model": "other", "seed": 1}, remedy="Delete it.")
    assert kept(tmp_path / "absent.json", FACTS) is None


@pytest.mark.parametrize("content", ["{", "[1]", "5", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "made.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"made\.json.*delete it to make it again"):
        kept(tmp_path / "made.json", FACTS, on_change="remake")


def test_each_difference_is_named_with_both_values(tmp_path):
    path = tmp_path / "a.json"
    wanted = {"source": "udhr", "settings": {"rate": 0.1, "window": 16}, "languages": ("en", "yo")}
    assert kept(path, wanted) is None, "there is no file"
    write_json(path, {**wanted, "scores": [1, 2]})
    assert kept(path, wanted)["scores"] == [1, 2], "further facts do not matter, and a tuple equals a list"
    for change, difference in [
        ({"source": "sib200"}, "source: 'udhr', wanted 'sib200'"),
        ({"settings": {"rate": 0.2, "window": 16}}, "settings.rate: 0.1, wanted 0.2"),
        ({"settings": {"rate": 0.1}}, "settings.window: 16, wanted None"),
        ({"languages": ("en", "is", "yo")}, "languages: 2, wanted 3; only in one: is"),
        ({"revision": "abc"}, "revision: None, wanted 'abc'"),
    ]:
        assert kept(path, wanted | change, on_change="remake") is None
        with pytest.raises(ValueError, match=re.escape(f"a.json does not match what is asked for now ({difference})")):
            kept(path, wanted | change)


def test_the_facts_of_a_tensor_file_are_those_of_its_header(tmp_path):
    profile = ActivationProfile(torch.ones(2, 1, 4), torch.tensor([9, 9]), ["yo", "en"], {"source": "udhr"})
    path = profile.save(tmp_path / "profile.safetensors")
    assert kept(path, {"source": "udhr", "languages": ["en", "yo"]})
    assert not kept(path, {"source": "udhr", "languages": ["en", "is"]}, on_change="remake")
