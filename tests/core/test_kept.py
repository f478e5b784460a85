"""One check before a file is reused: the same facts, whatever kind of file records them."""

import pytest
import torch

from ssetools.files import kept, save_tensors, write_json

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


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "made.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"made\.json"):
        kept(tmp_path / "made.json", FACTS)
