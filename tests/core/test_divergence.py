"""Drift: samples drawn once, and the divergence between base and trained model."""

from __future__ import annotations

import families
import pytest
import torch
from torch.nn import functional as F

from ssetools.evaluation.drift import drift, sample_from_base, token_divergence
from ssetools.models import body_of, evaluation_mode
from ssetools.training.finetune import finetune
from ssetools.training.methods import attach_method


@pytest.fixture(autouse=True)
def _made_up(monkeypatch):
    monkeypatch.setattr("ssetools.loss.BLOCK_BYTES", {"cpu": 0})
    texts = [" ".join(f"w{(7 * i + k) % 80 + 3}" for k in range(20)) for i in range(9)]
    monkeypatch.setattr("ssetools.evaluation.drift.load_texts", lambda source, lang, split: texts)


@pytest.mark.parametrize("method", ["lape", "full", "lora"])
@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_divergence_equals_that_of_the_full_distributions(family, method, word_tokenizer):
    model = families.tiny_model(family)
    ids = families.tokens()
    base = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    text = [" ".join(f"w{i % 90 + 3}" for i in range(400))]
    options = {"window": 16, "batch_size": 2, "learning_rate": 0.1}
    result = finetune(model, word_tokenizer, text, method, families.some_neurons(model), **options)
    trained = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    expected = F.kl_div(trained, base, reduction="none", log_target=True).sum(-1)
    assert expected.mean() > 1e-3
    torch.testing.assert_close(token_divergence(model, ids), expected.detach(), rtol=1e-3, atol=1e-5)
    result.adapter.detach()


def test_more_samples_than_the_declaration_opens_are_refused(word_tokenizer, monkeypatch):
    monkeypatch.setattr("ssetools.evaluation.drift.load_texts", lambda *asked: ["w3 w4 " * 8] * 5)
    with pytest.raises(ValueError, match="opens 4 samples in 'yo'; asked for 5"):
        sample_from_base(families.tiny_model("llama"), word_tokenizer, ["yo"], samples=5, tokens=2)


def test_an_untrained_adapter_has_not_drifted(word_tokenizer):
    model = families.tiny_model("llama")
    samples = sample_from_base(model, word_tokenizer, ["en", "fr"], samples=2, tokens=5)
    attach_method(model, "lape", families.some_neurons(model))
    found = drift(model, samples)
    assert list(found) == ["en", "fr"]
    assert all(abs(x["kl"]) < 1e-6 and len(x["per_sample"]) == 2 for x in found.values())


def token_by_token(model, ids, tokens, seed):
    """Samples from the whole distribution without `generate`."""
    generator = torch.Generator().manual_seed(seed)
    with evaluation_mode(model), torch.no_grad():
        for _ in range(tokens):
            probabilities = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return ids


@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_samples_come_from_the_whole_distribution_at_temperature_1(word_tokenizer, load_in_8bit):
    model = families.tiny_model("llama", load_in_8bit)
    # What a model's own settings for chats would change.
    model.generation_config.update(do_sample=True, top_k=3, top_p=0.5, temperature=0.2, eos_token_id=[40, 41, 42])
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    samples = sample_from_base(model, word_tokenizer, ["en", "fr"], samples=3, tokens=40, seed=7)
    assert torch.equal(torch.rand(1), expected_next), "the random state of the process is left as it was"
    ids = torch.cat(list(samples.values()))
    assert torch.equal(ids, token_by_token(model, ids[:, :13], tokens=40, seed=7))
    assert torch.isin(ids, torch.tensor([40, 41, 42])).any(), "a sample goes on past an end of text"


def test_an_article_of_too_few_tokens_opens_no_sample(word_tokenizer, monkeypatch):
    monkeypatch.setattr("ssetools.evaluation.drift.load_texts", lambda *asked: ["w3 w4 " * 8, "w5 w6"])
    with pytest.raises(ValueError, match="opens with 12 tokens, and an article in 'yo' has fewer: 'w5 w6'"):
        sample_from_base(families.tiny_model("llama"), word_tokenizer, ["yo"], samples=1, tokens=2)


def test_samples_are_drawn_once_and_follow_the_model(word_tokenizer, tmp_path, monkeypatch):
    model = families.tiny_model("llama")
    path = tmp_path / "samples.safetensors"
    first = sample_from_base(model, word_tokenizer, ["en"], path, samples=3, tokens=40)
    assert first["en"].shape == (3, 1 + 12 + 40)
    body = body_of(model)
    monkeypatch.setattr(body, "forward", lambda *a, **k: pytest.fail("drawn again"))
    assert torch.equal(sample_from_base(model, word_tokenizer, ["en"], path, samples=3, tokens=40)["en"], first["en"])
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        sample_from_base(model, word_tokenizer, ["en"], path, samples=3, tokens=41)
