"""Tasks: what is asked, how it is scored, what is unavailable, and that the model is left as it was."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import datasets
import families
import hub_layouts
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from made_up_tasks import TOPICS, belebele, belebele_rows, declaration, likelihood, task_tokenizer, words

from ssetools import evaluate
from ssetools.errors import InvalidInput
from ssetools.evaluation.harness import in_memory
from ssetools.evaluation.task_sets import TASKS, parse_tasks
from ssetools.models import body_of, evaluation_mode
from ssetools.training.methods import attach_method


@pytest.fixture(scope="module")
def tokenizer():
    return task_tokenizer()


# --- how a question is scored -----------------------------------------------------------------------------------


def test_likelihoods_are_those_of_all_logits(tokenizer):
    model = families.tiny_model("gemma2")
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    draw = random.Random(0)
    requests = []
    for size in (1, 1, 2, 5, 9):
        context = [2, *(draw.randrange(5, 97) for _ in range(3 + size))]
        requests += [(("", ""), context, [draw.randrange(5, 97) for _ in range(size)]) for _ in range(3)]
    # One continuation that greedy decoding would give, of two tokens, so that the flag is seen to be set.
    with torch.no_grad():
        first = model(input_ids=torch.tensor([context])).logits[0, -1].argmax().item()
        second = model(input_ids=torch.tensor([[*context, first]])).logits[0, -1].argmax().item()
    requests.append((("", ""), context, [first, second]))
    with in_memory(model, tokenizer, 4) as lm:
        ours = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    theirs = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], rel=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert ours[-1][1]


@pytest.mark.parametrize("load_in_8bit", [False, True])
def test_belebele_is_answered_by_likelihood(tokenizer, tmp_path, load_in_8bit):
    model = families.tiny_model("llama", load_in_8bit)
    row = evaluate(model, tokenizer, "yo", [belebele(tmp_path)])["tasks"]["belebele"]
    correct = []
    for asked in belebele_rows():
        prompt = f"P: {asked['flores_passage']}\nQ: {asked['question']}\n"
        prompt += "".join(f"{letter}: {asked[f'mc_answer{k}']}\n" for k, letter in enumerate("ABCD", 1)) + "Answer:"
        with evaluation_mode(model):
            scores = [likelihood(model, tokenizer, prompt, letter) for letter in "ABCD"]
        correct.append(int(scores.index(max(scores)) == int(asked["correct_answer_num"]) - 1))
    assert row["correct"] == correct
    assert row["value"] == pytest.approx(sum(correct) / 6)
    assert (row["chance"], row["items"], row["shots"], row["measure"]) == (0.25, 6, 0, "acc")
    assert row["low"] < row["value"] < row["high"]
    assert row["data"].startswith("belebele ")


def test_bos_opens_every_text(tokenizer, tmp_path, monkeypatch):
    model = families.tiny_model("llama")
    seen, body = [], body_of(model)
    forward = body.forward

    def watched(input_ids=None, past_key_values=None, **options):
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            seen.extend(input_ids.tolist())
        return forward(input_ids=input_ids, past_key_values=past_key_values, **options)

    monkeypatch.setattr(body, "forward", watched)
    copy = declaration(tmp_path)
    evaluate(model, tokenizer, "yo", [f"udhr_match:{copy}", f"udhr_translate:{copy}"], limit=2, batch_size=3)
    opened = [[i for i in row if i != tokenizer.pad_token_id][:2] for row in seen if row != [3, 4, 5, 6]]
    assert len(opened) > 8
    assert all(row[0] == tokenizer.bos_token_id and row[1] != tokenizer.bos_token_id for row in opened)
    with in_memory(model, tokenizer, 1) as lm:
        asked = [Instance("loglikelihood", {}, (context, " w5 w6"), 0) for context in ("w1 w2", "")]
        plain = [likelihood(model, tokenizer, one.args[0], "w5 w6") for one in asked]
        assert [x for x, _ in lm.loglikelihood(asked)] == pytest.approx(plain, rel=1e-5)
        lm.opening = []
        assert lm.tok_batch_encode(["", "w1"])[0].dtype == torch.long, "without BOS an empty text has no tokens"
        lm.opening = [tokenizer.bos_token_id]
        assert lm.tok_encode("w1 w2 w3", left_truncate_len=3)[0] == tokenizer.bos_token_id
        assert len(lm.tok_encode("w1 w2 w3", left_truncate_len=3)) == 3
        long = [[2, *range(5, 90)] * 30, [7]]
        seen.clear()
        lm._loglikelihood_tokens([(("", ""), *long)], disable_tqdm=True)
        assert lm.cut == 3
    assert (len(seen[0]), seen[0][0]) == (2048, tokenizer.bos_token_id), "a text that is too long keeps its BOS"
    stock = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=True)
    assert stock.tok_encode("w1")[0] != tokenizer.bos_token_id, "lm-eval leaves it to the tokenizer"


def test_the_model_is_left_as_it_was(tokenizer, tmp_path):
    model = families.tiny_model("llama", load_in_8bit=True)
    attach_method(model, "lape", families.some_neurons(model))
    modes = {name: number % 2 == 0 for number, (name, _) in enumerate(model.named_modules())}
    for name, module in model.named_modules():
        module.training = modes[name]
    bare, padding = families.word_tokenizer(), tokenizer.padding_side
    bare.pad_token, bare.eos_token = None, "\n"
    before = model(input_ids=families.tokens()).logits
    scores = [evaluate(model, one, "yo", [belebele(tmp_path)], limit=2) for one in (tokenizer, bare)]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(model(input_ids=families.tokens()).logits, before)
    assert bare.pad_token is None
    assert tokenizer.padding_side == padding
    assert scores[0]["adapter"] == {"format": "ssetools-subnetwork", "parameters": 8 * 96, "active": True, "scale": 1.0}
    assert (scores[0]["bos"], scores[0]["versions"]["lm-eval"] > "0.4") == ("<bos>", True)


@pytest.mark.parametrize("method", ["lape", "lora", "full"])
def test_an_adapter_counts_when_it_is_on(tokenizer, tmp_path, method):
    model = families.tiny_model("llama")
    requests = [(("", ""), [2, 9, 11], [13, 15])]

    def score():
        with in_memory(model, tokenizer, 1) as lm:
            return lm._loglikelihood_tokens(requests, disable_tqdm=True)[0][0]

    base = score()
    adapter = attach_method(model, method, families.some_neurons(model))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    adapter.publish()
    tuned = score()
    assert abs(tuned - base) > 0.01
    with adapter.switched_off():
        assert score() == pytest.approx(base, abs=1e-6)
        off = evaluate(model, tokenizer, "yo", [belebele(tmp_path)], limit=1)
    assert off["adapter"]["active"] is False
    assert score() == tuned
    adapter.detach()
    assert score() == pytest.approx(base, abs=1e-6)


# --- every set, from a folder in the hub's layout ---------------------------------------------------------------


def lettered(i, count=4):
    return {**{f"option_{letter}": words(2, f"{i}{letter}") for letter in "abcde"[:count]}, "answer": "ABCD"[i % 4]}


def arc_row(i):
    texts = [words(2, f"{i}{k}") for k in range(3 + i)]
    labels = [str(k + 1) for k in range(len(texts))] if i % 2 else list("ABCDE"[: len(texts)])
    return {"question": words(4, i), "choices": {"text": texts, "label": labels}, "answerKey": labels[1]}


def hellaswag_row(i):
    texts = {"activity_label": "w1", "ctx_a": words(4, i), "ctx_b": words(2, i)}
    return {**texts, "endings": [words(3, f"{i}{k}") for k in range(4)], "label": str(i)}


def piqa_row(i):
    return {"goal": words(4, i), "sol1": "w1 w2", "sol2": "w3", "label": i}


def global_piqa_row(i):
    return {"prompt": words(4, i), "solution0": "w1 w2", "solution1": "w3", "label": i}


def winogrande_row(i):
    return {"sentence": "w1 _ w2 w3", "option1": "w4", "option2": "w5", "answer": str(i + 1)}


SETS = {
    "global_piqa": ("yo", "yor_latn", "test", global_piqa_row, 1 / 2),
    "m_mmlu": ("is", "is", "test", lambda i: {"instruction": words(4, i), **lettered(i)}, 1 / 4),
    "m_arc": ("ne", "ne", "test", lambda i: {"id": "", "instruction": words(4, i), **lettered(i, 5)}, 1 / 5),
    "m_hellaswag": ("sk", "sk", "val", hellaswag_row, 1 / 4),
    "arc_easy": ("yo", "ARC-Easy", "test", arc_row, (1 / 3 + 1 / 4) / 2),
    "arc_challenge": ("yo", "ARC-Challenge", "test", arc_row, (1 / 3 + 1 / 4) / 2),
    "hellaswag": ("yo", "default", "validation", hellaswag_row, 1 / 4),
    "piqa": ("yo", "default", "validation", piqa_row, 1 / 2),
    "winogrande": ("yo", "winogrande_xl", "validation", winogrande_row, 1 / 2),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_from_a_local_copy(tokenizer, tmp_path, name):
    lang, config, split, row, chance = SETS[name]
    splits = {one: [row(0), row(1)] for one in {split, "train", "validation"}}
    copy = hub_layouts.questions(tmp_path, {config: splits})
    found = evaluate(families.tiny_model("llama"), tokenizer, lang, [f"{name}:{copy}"])["tasks"][name]
    assert found["items"] == 2, found
    assert found["chance"] == pytest.approx(chance)
    assert found["language"] == ("en" if TASKS[name].english else lang)


@pytest.mark.parametrize(("name", "group"), [("mmlu", "mmlu_stem"), ("global_mmlu", "global_mmlu_full_yo_stem")])
def test_every_subject_of_a_group_is_read_from_the_copy(tokenizer, tmp_path, monkeypatch, name, group):
    from lm_eval.tasks.global_mmlu.full.yo.utils import SUBJECTS

    monkeypatch.setitem(TASKS, name, replace(TASKS[name], built_in=group))  # a third of all subjects, for the time
    if name == "mmlu":
        rows = [{"question": words(3, i), "choices": [words(1, k) for k in range(4)], "answer": i} for i in range(2)]
        configs = {subject: {"test": rows, "dev": rows} for subject in SUBJECTS}
    else:
        rows = [{"subject": subject, "question": words(3, subject), **lettered(1)} for subject in SUBJECTS * 2]
        configs = {"yo": {"test": rows, "dev": rows}}
    copy = hub_layouts.questions(tmp_path, configs)
    row = evaluate(families.tiny_model("llama"), tokenizer, "yo", [f"{name}:{copy}"], limit=1)["tasks"][name]
    assert (row["items"], row["chance"]) == (19, 0.25), "one question of each subject"


def test_topics_of_sib200(tokenizer, tmp_path):
    rows = [(topic, words(8, topic)) for topic in TOPICS]
    copy = hub_layouts.sib200(tmp_path, rows)
    model = families.tiny_model("llama")
    row = evaluate(model, tokenizer, "yo", [f"sib200:{copy}"])["tasks"]["sib200"]
    correct = []
    for topic, text in rows:
        gains = [
            likelihood(model, tokenizer, f"Text: {text}\nTopic:", one) - likelihood(model, tokenizer, "", one)
            for one in TOPICS
        ]
        correct.append(int(gains.index(max(gains)) == TOPICS.index(topic)))
    assert row["correct"] == correct
    assert row["chance"] == pytest.approx(1 / 7)
    shown = evaluate(model, tokenizer, "yo", [f"sib200:{copy}"], shots=2)["tasks"]["sib200"]
    assert (shown["shots"], shown["items"]) == (2, 7)
    assert shown["digest"] != row["digest"]


# --- what is unavailable -------------------------------------------------------------------------------------------


def only_row(tokenizer, lang, task):
    (row,) = evaluate(families.tiny_model("llama"), tokenizer, lang, [task])["tasks"].values()
    assert set(row) == {"title", "language", "unavailable"}, "no number is made up"
    return row["unavailable"]


@pytest.mark.parametrize(
    ("lang", "name", "others"),
    [
        ("cy", "belebele", "sib200, flores, udhr_match, udhr_translate"),
        ("mt", "global_mmlu", "belebele, sib200, flores"),
        ("yo", "m_arc", "belebele"),
        ("is", "m_hellaswag", "belebele"),
        ("cy", "global_piqa", "sib200"),
    ],
)
def test_a_language_that_a_set_lacks_is_named_with_other_sets(tokenizer, lang, name, others):
    assert f"{TASKS[name].title} has no text in" in only_row(tokenizer, lang, name)
    assert f"Of the other sets, {others}" in only_row(tokenizer, lang, name)


def test_a_copy_that_lacks_the_language_says_so(tokenizer, tmp_path):
    belebele(tmp_path / "belebele", code="isl_Latn")
    assert "BuilderConfig 'yor_Latn' not found" in only_row(tokenizer, "yo", f"belebele:{tmp_path / 'belebele'}")
    copy = hub_layouts.sib200(tmp_path / "sib200", [("travel", "w1")], code="isl_Latn")
    assert "SIB-200 has no text in Yoruba" in only_row(tokenizer, "yo", f"sib200:{copy}")
    (tmp_path / "empty").mkdir()
    assert "The declaration has no text in Yoruba" in only_row(tokenizer, "yo", f"udhr_match:{tmp_path / 'empty'}")
    lacks = only_row(tokenizer, "br", f"udhr_match:{tmp_path / 'empty'}")
    assert lacks.endswith("no text in Breton (bre.html).")
    assert "another language than English" in only_row(tokenizer, "en", "udhr_translate")


@pytest.mark.parametrize("name", ["belebele", "mmlu", "sib200", "flores_plus", "piqa"])
def test_an_unreachable_set_keeps_its_row(tokenizer, monkeypatch, name):
    def refuse(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("no answer, or a gated set.\nmore")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    for module in ("evaluation.task_sets", "text.hub"):
        monkeypatch.setattr(f"ssetools.{module}.hub_reachable", lambda: True)
    said = only_row(tokenizer, "yo", name)
    assert f"{TASKS[name].title} cannot be loaded from the hub ({TASKS[name].repository}): no answer" in said
    assert f'name a local copy in its layout: "{name}:FOLDER"' in said
    assert ("set HF_TOKEN" in said) == (name == "flores_plus")


def test_examples_are_not_taken_from_the_questions(tokenizer, tmp_path):
    copy = hub_layouts.questions(tmp_path, {"yor_latn": {"test": [global_piqa_row(0), global_piqa_row(1)]}})
    found = evaluate(families.tiny_model("llama"), tokenizer, "yo", [f"global_piqa:{copy}"], shots=1)
    assert "no examples beside its questions: use shots=0" in found["tasks"]["global_piqa"]["unavailable"]


def test_other_errors_are_not_swallowed(tokenizer, tmp_path, monkeypatch):
    model, task = families.tiny_model("llama"), belebele(tmp_path)
    tasks = [f"{name}:{declaration(tmp_path / 'udhr')}" for name in ("udhr_match", "udhr_translate")]
    monkeypatch.setattr("ssetools.evaluation.harness.ask", lambda *_: pytest.fail("asked before all was loaded"))
    with pytest.raises(InvalidInput, match="asked for 100: use fewer shots"):
        evaluate(model, tokenizer, "yo", tasks, shots=100)
    monkeypatch.undo()
    monkeypatch.setattr("ssetools.evaluation.harness.check_head", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, tokenizer, "yo", [task])
    monkeypatch.undo()
    bad = [{**row, "correct_answer_num": "9"} for row in belebele_rows()]
    hub_layouts.questions(tmp_path, {"yor_Latn": {"test": bad}})
    with pytest.raises(ValueError, match="is not in list"):
        evaluate(model, tokenizer, "yo", [task])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "ssetools.evaluation.harness")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "ssetools\[tasks\]"'):
        evaluate(model, tokenizer, "yo", [task])


def test_wrong_requests_stop_before_anything_runs(tokenizer, tmp_path):
    for tasks, message in [
        (["belebel"], "Unknown task 'belebel': use udhr_match, "),
        (["belebele:nowhere"], "folder that does not exist: nowhere"),
        (["piqa", "piqa"], "Name one task or several, each once; got piqa piqa"),
        ([], "Name one task or several, each once; got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(None, None, "yo", tasks)
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        evaluate(None, None, "xx")
    with pytest.raises(ValueError, match="limit must be a whole number from 1 on; got 0"):
        evaluate(None, None, "yo", limit=0)
    assert parse_tasks("all") == [(name, "") for name in TASKS]
    assert parse_tasks(f"piqa udhr_match:{tmp_path}") == [("piqa", ""), ("udhr_match", str(tmp_path))]
