"""Scores, intervals, and switching neurons off."""

import contextlib
import math

import families
import pytest
import torch
from torch.nn import functional as F

from ssetools import amplified, deactivated, perplexity, score_texts
from ssetools.evaluation.perplexity import change, continue_text, generate_ids, score_languages, window_losses
from ssetools.models import evaluation_mode
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.report import report, report_table
from ssetools.text.windows import pack_tokens
from ssetools.training.methods import attach_method

TEXTS = [" ".join(f"w{3 + (7 * i + k) % 90}" for k in range(9)) for i in range(8)]


def plain_losses(model, tokenizer, window):
    """Every token's loss, one window at a time, through the model's own logits."""
    ids = [i for text in TEXTS for i in tokenizer(text + "\n", add_special_tokens=False)["input_ids"]]
    losses = []
    with torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(ids), window - 1):
            row = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + window - 1]]])
            losses += F.cross_entropy(model(input_ids=row).logits[0, :-1], row[0, 1:], reduction="none").tolist()
    return losses


@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_perplexity_weighs_every_token_once(word_tokenizer, load_in_8bit):
    model = families.tiny_model("llama", load_in_8bit)
    losses = plain_losses(model, word_tokenizer, window=13)
    score = score_texts(model, word_tokenizer, TEXTS, window=13)
    assert int(score.tokens.sum()) == len(losses) == 80
    assert score.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    num_bytes = sum(len(text) + 1 for text in TEXTS)
    assert score.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / num_bytes, rel=1e-4)
    assert perplexity(model, word_tokenizer, TEXTS, window=13) == pytest.approx(score.perplexity, rel=1e-4)
    alone, tokens = window_losses(model, pack_tokens(word_tokenizer, TEXTS, 13), batch_size=1)
    assert torch.equal(tokens, score.tokens)
    assert torch.allclose(alone, score.losses, rtol=1e-4)


def test_scores_do_not_depend_on_the_mode_the_model_was_in(word_tokenizer):
    model = families.tiny_model("llama", load_in_8bit=True)
    scores = {mode: perplexity(model.train(mode), word_tokenizer, TEXTS) for mode in (True, False)}
    assert scores[True] == scores[False]
    assert not model.training


def test_a_single_string_is_no_list_of_documents(word_tokenizer):
    with pytest.raises(TypeError, match=r"give \[text\]"):
        perplexity(families.tiny_model("llama"), word_tokenizer, "w3 w4 w5")
    with pytest.raises(TypeError, match=r"give \[text\]"):
        score_languages(families.tiny_model("llama"), word_tokenizer, {"a": {"yo": "w3 w4 w5"}}, {"*": 9})


def test_max_tokens_takes_documents_from_the_front(word_tokenizer):
    model = families.tiny_model("llama")
    score = score_texts(model, word_tokenizer, ["", *TEXTS], max_tokens=15, window=13)
    assert int(score.tokens.sum()) == 20
    with pytest.raises(ValueError, match="no text to score"):
        score_texts(model, word_tokenizer, ["", " "])


def test_one_token_that_nothing_precedes_cannot_be_scored():
    model, tokenizer = families.tiny_model("llama"), families.word_tokenizer()
    tokenizer.bos_token = None
    assert int(score_texts(model, tokenizer, ["w5"]).tokens.sum()) == 1, "the newline after it"
    with pytest.raises(ValueError, match="nothing to predict"):
        score_texts(model, tokenizer, ["w5"], window=1)


def score_dict(losses, tokens):
    return {"window_losses": losses, "window_tokens": tokens}


def test_change_and_its_interval():
    generator = torch.Generator().manual_seed(0)
    before = (torch.rand(40, generator=generator) * 5 + 10).tolist()
    same = change(score_dict(before, [10] * 40), score_dict([x - 1.0 for x in before], [10] * 40))
    assert same["percent"] == pytest.approx(100 * math.expm1(-0.1))
    assert same["low"] == pytest.approx(same["high"]), "an equal shift of every window leaves no doubt"
    noisy = [x - 1.0 + (3 if i % 2 else -3) for i, x in enumerate(before)]
    moved = change(score_dict(before, [10] * 40), score_dict(noisy, [10] * 40))
    assert moved["low"] < moved["percent"] < moved["high"]
    assert moved["low"] < -15
    nine = change(score_dict(before[:9], [10] * 9), score_dict(noisy[:9], [10] * 9))
    spread = torch.tensor([noisy[i] - before[i] for i in range(9)]).std().item() / 10 / 3
    width = math.log1p(nine["high"] / 100) - math.log1p(nine["low"] / 100)
    assert width == pytest.approx(2 * 2.306 * spread, rel=0.1), "a plain bootstrap is a fifth narrower"
    few = score_dict([1.0] * 4, [3] * 4)
    assert change(few, few) == {"percent": 0.0, "low": None, "high": None}, "four windows are too few to resample"
    with pytest.raises(ValueError, match="different texts"):
        change(score_dict([1.0], [3]), score_dict([1.0], [4]))


def test_the_report_has_every_row_as_text_and_as_html():
    scores = {"nso": {"perplexity": 1234.5}, "en": {"perplexity": 8.59}}
    change = {"percent": -30.72, "low": -36.84, "high": -26.18}
    english = {"percent": -0.41, "low": None, "high": None}
    summary = {
        "target": change,
        "english": english,
        "others": {"en": english, "fr": {"percent": 2.0}},
        "mean_of_others": 0.04,
    }
    base = {"model": "tiny"}
    about = {"language": "nso", "base": base, "method": "lape", "seed": 0, "neurons": 434, "parameters": 833_280}
    about |= {
        "model_parameters": 268_098_176,
        "tokens": 30_720,
        "source": "udhr",
        "seconds": 150,
        "peak_memory_gib": 3.1,
    }
    metrics = {"adapter": about, "same_kind": ["messages"], "reason": "Made up.", "folder": "runs/x"}
    for name in ("before", "after"):
        metrics[name] = {"messages": scores, "sentences": scores}
    metrics["summary"] = {"messages": summary, "sentences": {**summary, "english": None, "mean_of_others": None}}
    text = report(metrics)
    assert text.splitlines() == [
        "Northern Sotho (nso), tiny, lape, seed 0",
        "  neurons trained             434",
        "  weights trained         833,280   0.31% of the model",
        "  training                 30,720 tokens of udhr, 2.5 minutes, 3.1 GiB",
        "",
        "  perplexity                                  before   after  change (95% interval)",
        "  Northern Sotho, messages (seen genre)      1234.50 1234.50  -30.7% (-36.8 to -26.2)",
        "  English, messages (seen genre)                8.59    8.59  -0.4%",
        "  2 other languages, messages (seen genre)                    0.0% on average, +2.0% at worst (French)",
        "  Northern Sotho, sentences (unseen genre)   1234.50 1234.50  -30.7% (-36.8 to -26.2)",
        "",
        "  Made up.",
        "  adapter: runs/x",
        "  other methods and scales: https://github.com/ssetools/ssetools/blob/main/book/which_method.md",
    ]
    html = report_table(metrics).to_html(index=False)
    assert all(f"<td>{cell}</td>" in html for row in report_table(metrics).to_numpy() for cell in row)
    about["scale"] = 0.6
    assert "  scale                       0.6   of the trained change" in report(metrics).splitlines()


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt"])
def test_deactivation_zeroes_exactly_the_chosen_neurons(family):
    model = families.tiny_model(family)
    neurons, ids = families.some_neurons(model), families.tokens()
    base = model(input_ids=ids).logits
    seen = {}
    for layer, block in enumerate(find_ffn_blocks(model)):
        block.down.module.register_forward_hook(lambda m, args, out, layer=layer: seen.update({layer: args[0]}))
    with deactivated(model, neurons):
        model(input_ids=ids)
    for layer, chosen in enumerate(neurons):
        zero = (seen[layer].reshape(-1, seen[layer].shape[-1]) == 0).all(0)
        assert zero.nonzero().flatten().tolist() == chosen.tolist()
    with amplified(model, neurons, factor=1.0):
        torch.testing.assert_close(model(input_ids=ids).logits, base)
    assert torch.equal(model(input_ids=ids).logits, base)
    with pytest.raises(ValueError, match="other model"), deactivated(model, neurons[:1]):
        pass


@pytest.mark.parametrize("method", [None, "lape", "lora"])
@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_amplification_multiplies_the_chosen_neurons_and_leaves_no_trace(load_in_8bit, method):
    model = families.tiny_model("llama", load_in_8bit)
    neurons, ids = families.some_neurons(model), families.tokens()
    if method:
        adapter = attach_method(model, method, neurons)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.05)
        adapter.publish()
    base, seen = model(input_ids=ids).logits, {}
    for layer, block in enumerate(find_ffn_blocks(model)):
        block.down.module.register_forward_hook(lambda m, args, out, layer=layer: seen.update({layer: args[0]}))
    model(input_ids=ids)
    plain = seen[0].detach().clone()
    with contextlib.suppress(RuntimeError), amplified(model, neurons, factor=3.0):
        assert not torch.equal(model(input_ids=ids).logits, base)
        factors = seen[0] / plain
        raise RuntimeError("half-way")
    expected = torch.ones(plain.shape[-1])
    expected[neurons[0]] = 3
    torch.testing.assert_close(factors, expected.expand_as(factors), rtol=1e-5, atol=1e-5)
    assert torch.equal(model(input_ids=ids).logits, base)


def test_continuation_is_deterministic(word_tokenizer):
    model = families.tiny_model("llama")
    once = continue_text(model, word_tokenizer, "w5 w6", new_tokens=5)
    assert once == continue_text(model, word_tokenizer, "w5 w6", new_tokens=5)
    drawn = [continue_text(model, word_tokenizer, "w5 w6", 5, seed=seed, top_p=0.9) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2], "with a seed, tokens are drawn"


@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_prompts_of_several_lengths_are_continued_as_each_alone(word_tokenizer, load_in_8bit):
    model = families.tiny_model("llama", load_in_8bit)
    prompts = [[2, 5, 6, 7, 8], [2, 9]]
    together = generate_ids(model, word_tokenizer, prompts, new_tokens=6)
    alone = [generate_ids(model, word_tokenizer, [prompt], new_tokens=6)[0] for prompt in prompts]
    assert torch.equal(together, torch.stack(alone))
    beside_none = generate_ids(model, word_tokenizer, [[], *prompts], new_tokens=6)
    assert torch.equal(beside_none[1:], together)
    sampled = [generate_ids(model, word_tokenizer, prompts, 6, samples=2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])


def test_a_continuation_opens_with_bos(word_tokenizer, monkeypatch):
    model, seen = families.tiny_model("llama"), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: (seen.append(given["input_ids"]), generate(**given))[1])
    continue_text(model, word_tokenizer, "w5 w6", 2)
    assert seen[0].tolist() == [[word_tokenizer.bos_token_id, 5, 6]]
