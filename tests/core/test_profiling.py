"""Counting: equal budgets, no head, resume after a kill."""

from types import SimpleNamespace

import families
import pytest
import torch

from ssetools import ActivationProfile, processes, profile_languages
from ssetools.neurons import counts as profiling
from ssetools.neurons.counts import _PartialProfile
from ssetools.neurons.ffn import find_ffn_blocks


def words(count, start=3):
    return [" ".join(f"w{start + (7 * i + k) % 90}" for k in range(11)) for i in range(count)]


TEXTS = {"yo": words(30), "is": words(50, 5), "en": words(44, 9)}


def test_every_language_gets_the_same_number_of_tokens(word_tokenizer):
    model = families.tiny_model("llama")
    profile = profile_languages(model, word_tokenizer, TEXTS, window=17)
    assert profile.tokens.tolist() == [30 * 12] * 3, "the smallest text decides"
    profile = profile_languages(model, word_tokenizer, TEXTS, tokens_per_language=101, window=17)
    assert profile.tokens.tolist() == [101] * 3
    assert (profile.counts <= 101).all()
    assert profile.languages == list(TEXTS)
    with pytest.raises(ValueError, match="Too little text for 500 tokens per language"):
        profile_languages(model, word_tokenizer, TEXTS, tokens_per_language=500, window=17)


def test_batch_size_does_not_matter(word_tokenizer):
    model = families.tiny_model("gpt2")
    one = profile_languages(model, word_tokenizer, TEXTS, window=17, batch_size=1)
    many = profile_languages(model, word_tokenizer, TEXTS, window=17, batch_size=7)
    assert torch.equal(one.counts, many.counts)


def test_more_processes_than_windows(word_tokenizer, monkeypatch):
    model, text = families.tiny_model("llama"), {"yo": words(12)}
    whole, shares = profile_languages(model, word_tokenizer, text, window=17), []
    assert whole.tokens.tolist() == [9 * 16]
    monkeypatch.setattr(processes, "count", lambda: 11)
    monkeypatch.setattr(processes, "total", lambda x: shares.append(x) or x.clamp(min=1))
    for rank in range(11):
        state = SimpleNamespace(process_index=rank, is_main_process=rank == 0, wait_for_everyone=lambda: None)
        monkeypatch.setattr(processes, "state", lambda state=state: state)
        profile_languages(model, word_tokenizer, text, window=17)
    assert torch.equal(sum(shares[0::2]), whole.counts)
    assert [int(x) for x in shares[1::2]] == [16] * 9 + [0, 0]


def test_the_head_is_never_run(word_tokenizer):
    model = families.tiny_model("llama")
    model.lm_head.register_forward_hook(lambda *args: pytest.fail("the head was run"))
    profile_languages(model, word_tokenizer, TEXTS, window=17)


def test_hooks_are_removed_and_mode_restored_after_an_error(word_tokenizer):
    model = families.tiny_model("llama").train()
    with pytest.raises(ValueError, match="every document is empty"):
        profile_languages(model, word_tokenizer, {**TEXTS, "ka": [" "]}, window=17)
    assert model.training
    assert not any(block.inputs[0].module._forward_hooks for block in find_ffn_blocks(model))


def test_a_stopped_count_resumes_to_the_same_result(word_tokenizer, tmp_path, monkeypatch, capsys):
    model = families.tiny_model("llama")
    add, calls, every = _PartialProfile.add, [], []
    monkeypatch.setattr(_PartialProfile, "add", lambda self, *args: (every.append(1), add(self, *args)))
    whole = profile_languages(model, word_tokenizer, TEXTS, window=17, batch_size=2)
    path = tmp_path / "profile.safetensors"
    monkeypatch.setattr("ssetools.neurons.counts._SAVE_SECONDS", -1)

    def dying(self, *args):
        add(self, *args)
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt

    monkeypatch.setattr(_PartialProfile, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        profile_languages(model, word_tokenizer, TEXTS, window=17, batch_size=2, path=path)
    assert not path.exists()
    monkeypatch.setattr(_PartialProfile, "add", add)
    done = []
    monkeypatch.setattr(_PartialProfile, "add", lambda self, *args: (done.append(1), add(self, *args)))
    resumed = profile_languages(model, word_tokenizer, TEXTS, window=17, batch_size=2, path=path)
    assert "Resuming the profile" in capsys.readouterr().out
    assert torch.equal(resumed.counts, whole.counts)
    assert torch.equal(resumed.tokens, whole.tokens)
    assert 0 < len(done) <= len(every) - len(calls) + 1, "only what was missing is counted"
    assert [p.name for p in tmp_path.iterdir()] == ["profile.safetensors"]
    assert torch.equal(ActivationProfile.load(path).counts, whole.counts)


def test_a_partial_count_with_other_settings_is_restarted(word_tokenizer, tmp_path, capsys):
    model = families.tiny_model("llama")
    progress = _PartialProfile(str(tmp_path / "p.partial.safetensors"), (3, 2, 48), {"other": 1})
    progress.path.parent.mkdir(exist_ok=True)
    from ssetools.files import save_tensors

    save_tensors(
        progress.path,
        {"counts": torch.full((3, 2, 48), 9), "tokens": torch.full((3,), 9)},
        {"settings": {"other": 1}, "windows_done": [1, 1, 1]},
    )
    profile = profile_languages(model, word_tokenizer, TEXTS, window=17, path=tmp_path / "p")
    assert "Restarting the profile" in capsys.readouterr().out
    assert profile.tokens.tolist() == [360] * 3


def test_counts_of_two_texts_are_not_added_up(word_tokenizer, tmp_path, monkeypatch, capsys):
    model, path = families.tiny_model("llama"), tmp_path / "profile.safetensors"
    monkeypatch.setattr("ssetools.neurons.counts._SAVE_SECONDS", -1)
    add = _PartialProfile.add
    monkeypatch.setattr(_PartialProfile, "add", lambda self, *args: (add(self, *args), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        profile_languages(model, word_tokenizer, TEXTS, window=17, path=path)
    monkeypatch.setattr(_PartialProfile, "add", add)
    other = {lang: [text.replace("w3", "w9") for text in texts] for lang, texts in TEXTS.items()}
    found = profile_languages(model, word_tokenizer, other, window=17, path=path)
    assert "Restarting the profile" in capsys.readouterr().out
    assert torch.equal(found.counts, profile_languages(model, word_tokenizer, other, window=17).counts)


@pytest.mark.parametrize("shape", [(3, 600, 16), (1, 255, 8), (2, 256, 24), (2, 5, 7)])
def test_fast_counts_are_exact(shape):
    fired = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.7
    fired[..., 0] = True  # every byte of a word may fill up
    assert torch.equal(profiling._count_true(fired), fired.sum((0, 1)))
    assert torch.equal(profiling._count_true(fired[:, 1:]), fired[:, 1:].sum((0, 1)))


def test_fired_in_bfloat16_is_the_sign_of_the_number():
    model = families.tiny_model("llama")
    block = find_ffn_blocks(model)[0]
    tiny = torch.finfo(torch.bfloat16).smallest_normal
    values = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 4, -tiny / 4, 1e30, -1e30, torch.inf, -torch.inf] * 10)
    output = values[: block.num_neurons].bfloat16()[None]
    assert torch.equal(block.fired(output), output.float() > 0)
