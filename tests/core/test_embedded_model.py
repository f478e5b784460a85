"""The embedded model and texts: real weights, real text, a short training run. Minutes on two cores."""

import math
import os
import subprocess
import sys

import pytest
import torch

from ssetools import (
    Subnetwork,
    find_ffn_blocks,
    finetune,
    load_model,
    load_texts,
    perplexity,
    profile_languages,
    select_neurons,
)
from ssetools.loss import LARGE_VOCABULARY, Head, _BlockwiseLoss
from ssetools.models import body_of, quantization_of
from ssetools.text.sources import default_source, parse_sources

pytestmark = [pytest.mark.slow, pytest.mark.network]  # the declaration and MediaWiki's messages


@pytest.fixture(scope="module")
def gemma():
    return load_model()


@pytest.fixture(scope="module")
def neurons(gemma):
    texts = {lang: load_texts("udhr", lang, "train") for lang in ("yo", "is", "ka", "en", "fr")}
    return select_neurons(profile_languages(*gemma, texts, tokens_per_language=512), top_rate=0.05)


def test_it_is_gemma_in_8_bit(gemma):
    model, tokenizer = gemma
    assert quantization_of(model) == "int8"
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    blocks = find_ffn_blocks(model)
    assert (len(blocks), blocks[0].num_neurons, blocks[0].hidden_size) == (18, 2048, 640)
    assert not any(p.requires_grad for p in model.parameters())
    text = "Bí ó ti jẹ́ pé — ქართული, नेपाली"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_it_reads_english_and_less_yoruba(gemma):
    found = {lang: perplexity(*gemma, load_texts("udhr", lang, "test"), max_tokens=500) for lang in ("en", "yo")}
    assert found["en"] < 12
    assert 30 < found["yo"] < 90


def test_a_window_without_bos_is_another_model(gemma):
    model, tokenizer = gemma
    ids = torch.tensor([tokenizer(load_texts("udhr", "yo", "test")[0], add_special_tokens=False).input_ids[:200]])
    with_bos = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
    losses = {}
    for name, row in (("with", with_bos), ("without", ids)):
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, :-1].float()
        losses[name] = torch.nn.functional.cross_entropy(logits[-190:], row[0, -190:]).item()
    assert losses["without"] > losses["with"] + 0.2


def test_a_short_run_helps_yoruba_on_text_it_never_saw_and_leaves_english(gemma, neurons, tmp_path):
    model, tokenizer = gemma
    source = str(parse_sources(default_source())[-1])
    checks = {lang: load_texts("udhr", lang, "test") for lang in ("yo", "en")}
    before = {lang: perplexity(model, tokenizer, texts, max_tokens=500) for lang, texts in checks.items()}
    ids = torch.randint(5, 9000, (1, 8))
    logits = model(input_ids=ids).logits
    result = finetune(
        model, tokenizer, load_texts(source, "yo", "train"), neurons=neurons["yo"], run_dir=tmp_path, max_tokens=4096
    )
    after = {lang: perplexity(model, tokenizer, texts, max_tokens=500) for lang, texts in checks.items()}
    assert after["yo"] < 0.97 * before["yo"]
    assert abs(math.log(after["en"] / before["en"])) < 0.02
    assert result.adapter.num_parameters < 0.01 * 268_098_176
    result.adapter.detach()
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert perplexity(*gemma, checks["en"], max_tokens=500) == before["en"]
    Subnetwork.load(tmp_path, model)
    assert perplexity(*gemma, checks["yo"], max_tokens=500) == after["yo"]
    Subnetwork.attached_to(model).detach()


def test_a_second_load_uses_no_network(gemma):
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network used')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from ssetools import load_model, load_texts\n"
        "from ssetools.text.sources import default_source\n"
        "load_model(); print(len(load_texts(default_source(), 'yo', 'train')))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 18
    assert "it/s" not in done.stderr, "no progress bars, no warnings"


@pytest.mark.parametrize("lang", ["is", "ka", "ne", "en"])
def test_the_gradient_without_unlikely_words_is_within_rounding(gemma, lang, monkeypatch):
    model, tokenizer = gemma
    ids = tokenizer("\n".join(load_texts("udhr", lang, "train")), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokenizer.bos_token_id, *ids[:127]], [tokenizer.bos_token_id, *ids[127:254]]])
    with torch.no_grad():
        hidden = body_of(model)(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
    hidden.requires_grad_()
    head, labels = Head(model), ids[:, 1:].flatten()
    gradients = {}
    for large in (10**9, LARGE_VOCABULARY):
        monkeypatch.setattr("ssetools.loss.LARGE_VOCABULARY", large)
        loss = _BlockwiseLoss.apply(hidden, head.weight, head.bias, labels, head)
        gradients[large] = torch.autograd.grad(loss, hidden)[0].float()
    full, likely = gradients[10**9], gradients[LARGE_VOCABULARY]
    rounding = (full.bfloat16().float() - full).norm()
    assert 0 < (likely - full).norm() < 2**-9.2 * full.norm()
    assert model.dtype != torch.float32 or (likely - full).norm() < rounding


def test_the_second_embedded_model_reads_english():
    model, tokenizer = load_model("smollm2-135m")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    blocks = find_ffn_blocks(model)
    assert (len(blocks), blocks[0].num_neurons, blocks[0].hidden_size) == (30, 1536, 576)
    found = {
        lang: perplexity(model, tokenizer, load_texts("udhr", lang, "test"), max_tokens=500) for lang in ("en", "is")
    }
    assert found["en"] < 20 < found["is"]
