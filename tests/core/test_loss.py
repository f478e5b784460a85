"""The loss without logits: equal to the plain loss, for every kind of head."""

from __future__ import annotations

from types import SimpleNamespace

import families
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssetools import loss
from ssetools.loss import IGNORED, Head, _BlockwiseLoss, chunked_loss, token_losses
from ssetools.training.subnetwork import Subnetwork


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr("ssetools.loss.BLOCK_BYTES", {"cpu": 0})  # 16 words to a block: 97 words make seven


def plain_loss(model, ids, labels):
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt2"])
@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_loss_and_gradients_equal_the_plain_loss(family, load_in_8bit):
    model = families.tiny_model(family, load_in_8bit)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    ids = families.tokens(batch=4, length=13)
    plain = plain_loss(model, ids, ids)
    expected = torch.autograd.grad(plain, list(subnet.parameters()))
    loss = chunked_loss(model, ids)
    torch.testing.assert_close(loss, plain)
    for found, wanted in zip(torch.autograd.grad(loss, list(subnet.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(token_losses(model, ids).mean(), plain.detach())


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_masked_labels_take_no_part(family):
    model = families.tiny_model(family)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    ids = families.tokens(batch=4, length=13)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4, IGNORED)
    plain, loss = plain_loss(model, ids, labels), chunked_loss(model, ids, labels)
    torch.testing.assert_close(loss, plain)
    parameters = list(subnet.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="No token is labelled"):
        chunked_loss(model, ids, torch.full_like(ids, IGNORED))


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("gemma2", True), ("cohere", True)])
def test_a_trained_head_gets_its_gradient(family, tied):
    model = families.tiny_model(family).requires_grad_(True)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    ids = families.tokens(batch=4, length=13)
    parameters = dict(model.named_parameters())
    plain = torch.autograd.grad(plain_loss(model, ids, ids), list(parameters.values()))
    found = torch.autograd.grad(chunked_loss(model, ids), list(parameters.values()))
    for name, one, other in zip(parameters, found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_a_trained_bias_gets_its_gradient():
    model = families.tiny_model("llama").requires_grad_(True)
    model.lm_head.bias = nn.Parameter(torch.randn(97))
    ids = families.tokens()
    (plain,) = torch.autograd.grad(plain_loss(model, ids, ids), [model.lm_head.bias])
    (found,) = torch.autograd.grad(chunked_loss(model, ids), [model.lm_head.bias])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ran_before", [False, True])
def test_an_8bit_head_is_read_through_its_scales(ran_before):
    import bitsandbytes

    model = families.tiny_model("llama")
    exact = model.lm_head.weight.detach().clone()
    head = bitsandbytes.nn.Linear8bitLt(32, 97, bias=False, has_fp16_weights=False)
    head.load_state_dict({"weight": exact})
    model.lm_head = head.to("cpu").train()
    if ran_before:
        model(input_ids=families.tokens())
    rows = Head(model).rows(slice(0, 97), torch.float32)
    torch.testing.assert_close(rows, exact, rtol=0, atol=exact.abs().max().item() / 127)
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    ids = families.tokens()
    plain, loss = plain_loss(model, ids, ids), chunked_loss(model, ids)
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=1e-3)
    parameters = list(subnet.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-5)


def test_a_head_that_is_not_understood_is_refused():
    model = families.tiny_model("llama")
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: forward(x) + torch.rand(())
    with pytest.raises(ValueError, match="changes its logits after the head"):
        chunked_loss(model, families.tokens())


def _head(vocabulary, hidden, cap=None, scale=None, bits=16, dtype=torch.float32):
    """A head over a vocabulary whose words differ in frequency, as those of a language model do."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    weight[:, 0] += torch.linspace(4, -4, vocabulary)[torch.randperm(vocabulary, generator=generator)]
    module = nn.Linear(hidden, vocabulary, bias=False, dtype=dtype).requires_grad_(False)
    module.weight.copy_(weight * (1.5 / hidden**0.5))
    if bits == 8:
        import bitsandbytes

        exact, module = (
            module.weight.detach().clone(),
            bitsandbytes.nn.Linear8bitLt(hidden, vocabulary, bias=False, has_fp16_weights=False),
        )
        module.load_state_dict({"weight": exact})
        module = module.to("cpu")
    config = SimpleNamespace(logit_scale=scale, logits_scaling=None, final_logit_softcapping=cap)
    config.get_text_config = lambda: config
    return Head(SimpleNamespace(get_output_embeddings=lambda: module, config=config))


def gradient(head, hidden, labels, monkeypatch, large):
    """Loss, its gradient, and how many words took part in each product."""
    kept = []
    add = loss._add_likely

    def counted(pulled, powers, *args):
        result = add(pulled, powers, *args)
        kept.append(int((powers == 0).all(0).sum()))  # what takes part is zeroed in the rest
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loss, "LARGE_VOCABULARY", large)
        patch.setattr(loss, "_add_likely", counted)
        value = _BlockwiseLoss.apply(hidden, head.weight, head.bias, labels, head)
    return value, torch.autograd.grad(value, hidden)[0].float(), kept


@pytest.mark.parametrize("options", [{}, {"cap": 30.0}, {"scale": 0.7}, {"bits": 8}, {"dtype": torch.bfloat16}])
def test_leaving_out_unlikely_words_costs_less_than_rounding(options, monkeypatch):
    monkeypatch.setattr("ssetools.loss.BLOCK_BYTES", {"cpu": 2**20})
    dtype = options.get("dtype", torch.float32)
    head = _head(8192, 64, **options)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(80, 64, generator=generator) * 4
    hidden[:, 0] = 16
    labels = (hidden.to(dtype) @ head.rows(slice(None), dtype).T).float().softmax(-1).multinomial(1)[:, 0]
    hidden = hidden.to(dtype).requires_grad_()
    full, likely = (gradient(head, hidden, labels, monkeypatch, large) for large in (10**9, 0))
    assert full[0] == likely[0]
    assert 0 < (likely[1] - full[1]).norm() / full[1].norm() < 2**-9.2
    assert 0 < sum(likely[2]) < 0.5 * 8192


@pytest.mark.parametrize("tokens", [16, 256])
def test_all_words_take_part_where_leaving_some_out_would_cost_more(tokens, monkeypatch):
    """Half of the tokens are uniform over even words, the others over odd ones, whose rows are opposite."""
    monkeypatch.setattr("ssetools.loss.BLOCK_BYTES", {"cpu": 2**22})
    vocabulary, head = 2**18, _head(2**18, 8)
    head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.01)
    head.weight[:, 0] = torch.where(torch.arange(vocabulary) % 2 == 0, 10.0, -10.0)
    hidden = torch.zeros(tokens, 8)
    hidden[:, 0] = torch.where(torch.arange(tokens) % 2 == 0, 3.0, -3.0)
    labels = torch.where(torch.arange(tokens) % 2 == 0, 6, 5)
    full, likely = (gradient(head, hidden.clone().requires_grad_(), labels, monkeypatch, large) for large in (10**9, 0))
    torch.testing.assert_close(likely[1], full[1], rtol=0, atol=0)
