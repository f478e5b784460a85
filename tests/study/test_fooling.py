"""The five experiments of `study.fooling` on a tiny model: what is measured, and that saved ones are not repeated."""

import math

import families
import pytest
import torch

from ssetools import select_neurons
from ssetools.loss import IGNORED
from ssetools.neurons import counts as profiling
from study import fooling

LANGS = ["yo", "is", "en"]


@pytest.fixture
def small(monkeypatch, word_tokenizer):
    def load_texts(source, lang, split):
        start = 3 + 30 * LANGS.index(lang) + 7 * ["train", "validation", "test"].index(split)
        return [" ".join(f"w{start + (i * i + 3 * k) % 19}" for k in range(5 + i % 4)) for i in range(160)]

    def get_neurons(model, tokenizer, runs):
        texts = {lang: load_texts("", lang, "train") for lang in LANGS}
        return select_neurons(profiling.profile_languages(model, tokenizer, texts, 200, window=16), 0.2)

    def load_model(name, load_in_8bit=True):
        model = families.tiny_model("llama", load_in_8bit)
        model.ssetools_source = {"model": name, "revision": None, "load_in_8bit": load_in_8bit}
        return model, word_tokenizer

    for name, value in {
        "load_texts": load_texts,
        "get_neurons": get_neurons,
        "load_model": load_model,
        "default_source": lambda: "made up",
        "OTHERS": ("is", "en"),
        "WINDOW": 16,
        "TOKENS": 320,
        "BUDGETS": {"target": 128, "*": 64},
        "EPOCHS": (1, 4),
        "PADDED": 12,
        "PADDED_STEPS": 4,
        "PADDED_TEST": 12,
    }.items():
        monkeypatch.setattr(fooling, name, value)


@pytest.fixture
def setup(small):
    return fooling.Setup("yo", "tiny", "runs", "sib200:folder")


def test_training_and_scoring_with_and_without_bos(setup, word_tokenizer):
    bare = fooling.without_bos(word_tokenizer)
    assert word_tokenizer.bos_token_id == 2
    assert fooling.pack_tokens(bare, ["w5 w6"], 16)[0].tolist() == [5, 6, 1]
    found = fooling.missing_bos(setup)
    assert set(found) == {"base", "trained with", "trained without"}
    for ways in found.values():
        assert set(ways["with"]) == set(LANGS)
        assert ways["with"]["yo"]["window_tokens"][0] == ways["without"]["yo"]["window_tokens"][0] == 15
    assert found["base"]["with"] != found["trained with"]["with"] != found["trained without"]["with"]


def test_more_passes_lower_the_loss_of_the_training_document(setup):
    passes = fooling.memorised(setup)["passes"]
    assert list(passes) == ["0", "1", "4"]
    seen = [passes[x]["trained on"]["perplexity"] for x in passes]
    assert seen == sorted(seen, reverse=True), "the perplexity of the training text falls with each pass"
    assert set(passes["0"]) == {"trained on", "same document", "messages", "sentences"}


def test_two_methods_at_two_rates(setup):
    found = fooling.unequal_rates(setup)
    assert [(r["method"], r["learning_rate"]) for r in found["runs"]] == [
        *[("lape", 3e-4), ("lape", 3e-5)],
        *[("random", 3e-4), ("random", 3e-5)],
    ]
    assert len({r["scores"]["perplexity"] for r in found["runs"]}) == 4


def test_padding_is_included_in_the_loss_or_excluded(setup, word_tokenizer):
    ids, labels = fooling.padded(word_tokenizer, ["w5 w6", "w7 " * 20], 2)
    assert ids[0].tolist() == [2, 5, 6, 1] + [0] * 8
    assert labels[0].tolist() == [2, 5, 6, 1] + [IGNORED] * 8
    assert (labels[1] == ids[1]).all()
    model = setup.model[0]
    with torch.no_grad():
        logits = model(ids[:1]).logits[0].log_softmax(-1)
    each = -logits[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
    assert fooling.padded_loss(model, ids[:1], labels[:1], True) == pytest.approx(each.mean().item(), rel=0.02)
    assert fooling.padded_loss(model, ids[:1], labels[:1], False) == pytest.approx(each[:3].mean().item(), rel=0.02)
    found = fooling.padding(setup)
    assert 0.2 < found["padding share"] < 0.6
    runs = found["runs"]
    assert len(runs["counted"]["history"]) == len(runs["ignored"]["history"]) == 4
    assert runs["counted"]["after"] != runs["ignored"]["after"]


def test_merging_into_int8_is_compared_with_16_bits(setup, monkeypatch):
    monkeypatch.setattr(fooling, "TOKENS", 1600)
    found = fooling.merging(setup)
    losses = {name: math.log(score["perplexity"]) for name, score in found.items() if name != "projections"}
    gained = losses["8-bit base"] - losses["delta beside 8-bit"]
    assert gained > 0
    assert losses["16-bit base"] - losses["merged into 16-bit"] == pytest.approx(gained, rel=0.3)
    assert [row["projection"] for row in found["projections"]] == ["gate", "up", "down"]
    for row in found["projections"]:
        assert row["delta"] < row["step"], "the deltas are smaller than an int8 step"
        assert 0.1 < row["error"] < 2, "rounding changes them"


def test_saved_experiments_are_not_repeated(setup, tmp_path, monkeypatch):
    path = tmp_path / "fooling.json"
    made = fooling.run(setup, ["padding"], path)
    assert "folder" not in path.read_text(), "no paths in results"
    assert made["experiments"]["padding"]["versions"]["torch"]
    monkeypatch.setitem(fooling.EXPERIMENTS, "padding", lambda setup: pytest.fail("repeated"))
    assert set(fooling.run(setup, ["padding", "rates"], path)["experiments"]) == {"padding", "rates"}
    with pytest.raises(ValueError, match="Delete it"):
        fooling.run(fooling.Setup("is", "tiny", "runs", "sib200"), ["rates"], path)
