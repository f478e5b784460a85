"""Tasks made from the declaration, translation, and a run against its base: compared, cached, tabulated."""

from __future__ import annotations

import json
from pathlib import Path

import families
import hub_layouts
import pytest
from made_up_tasks import belebele, declaration, likelihood, task_tokenizer, words

from ssetools import cli, evaluate, load_model, load_parallel
from ssetools.evaluation.task_sets import match_questions, parallel_paragraphs
from ssetools.evaluation.tasks import compare_translations, score_translations, share
from ssetools.report import compare_tasks, get_task_scores, task_report, task_table
from ssetools.training.adapter import Adapter
from ssetools.training.finetune import finetune


@pytest.fixture(scope="module")
def tokenizer():
    return task_tokenizer()


# --- which of four is the translation? --------------------------------------------------------------------------


def test_paragraphs_are_paired_and_uneven_articles_are_one_pair(tmp_path):
    even, odd = [[f"w{i}", f"w{i + 1}"] for i in range(31)], [[f"w{i}"] for i in range(31)]
    odd[22] = ["w7", "w8"]
    copy = hub_layouts.declaration(tmp_path, {"yor": odd, "eng": even})
    found = parallel_paragraphs("yo", "test", f"udhr:{copy}")
    assert found[:3] == [
        {"text": "w7", "english": "w22"},
        {"text": "w8", "english": "w23"},
        {"text": "w23", "english": "w23 w24"},
    ]
    assert len(found) == 10


@pytest.mark.network
def test_the_declaration_pairs_paragraph_by_paragraph():
    pairs = parallel_paragraphs("yo", "test")
    assert len(pairs) == 18
    assert pairs[1]["english"].startswith("Everyone has the right to work")
    assert pairs[1]["text"].startswith("Ẹnì kọ̀ọ̀kan ló ní ẹ̀tọ́ láti ṣiṣẹ́")


def test_questions_have_one_right_answer_and_wrong_ones_of_like_length():
    pairs = [{"text": f"t{i}", "english": "e" * (10 * i + 1)} for i in range(18)]
    asked = match_questions(pairs)
    assert asked == match_questions(pairs)
    assert asked != match_questions(pairs, seed=1)
    assert [q["unit"] for q in asked] == [*range(18)] * 4, "every passage once before any again"
    for question in asked:
        place = question["unit"]
        assert question["passage"] == f"t{place}"
        assert question["options"][question["answer"]] == pairs[place]["english"]
        lengths = sorted((len(option) - 1) // 10 for option in question["options"])
        assert len(set(lengths)) == 4
        assert all(abs(length - place) <= 6 for length in lengths)
    assert {question["answer"] for question in asked} == {0, 1, 2, 3}
    assert len({tuple(sorted(q["options"])) for q in asked if q["unit"] == 9}) > 1
    with pytest.raises(ValueError, match="needs 4 passages to choose from; the text has 3"):
        match_questions(pairs[:3])


def test_udhr_match_counts_what_the_passage_adds(tokenizer, tmp_path):
    model, copy = families.tiny_model("llama"), declaration(tmp_path)
    row = evaluate(model, tokenizer, "yo", [f"udhr_match:{copy}"], limit=20)["tasks"]["udhr_match"]
    asked = match_questions(parallel_paragraphs("yo", "test", f"udhr:{copy}"))[:20]
    gains = [
        [likelihood(model, tokenizer, f"Yoruba: {q['passage']}\nEnglish:", x) - likelihood(model, tokenizer, "", x)
         for x in q["options"]]
        for q in asked
    ]  # fmt: skip
    assert row["correct"] == [int(g.index(max(g)) == q["answer"]) for g, q in zip(gains, asked, strict=True)]
    assert row["units"] == [*range(18), 0, 1]
    assert (row["items"], row["chance"], row["measure"]) == (20, 0.25, "acc_mutual_info")
    assert set(row["other_measures"]) == {"acc", "acc_norm"}


def test_a_share_counts_units_not_questions():
    once = share([1, 0, 1, 1], [0, 1, 2, 3])
    assert once == pytest.approx({"value": 0.75, "low": 0.3006, "high": 0.9544}, abs=1e-4), "Wilson, three of four"
    again = share([1, 0, 1, 1] * 4, [0, 1, 2, 3] * 4)
    assert again == pytest.approx(once), "to ask the same four times again adds no information"
    assert share([1] * 8, range(8))["low"] < 0.7


# --- translation -------------------------------------------------------------------------------------------------


def test_translation_goes_both_ways_with_examples_from_elsewhere(tokenizer, tmp_path, monkeypatch):
    from ssetools.evaluation.harness import InMemoryLM

    prompts = []
    generate = InMemoryLM._model_generate

    def watched(self, context, **options):
        prompts.extend(tokenizer.batch_decode(context))
        return generate(self, context, **options)

    monkeypatch.setattr(InMemoryLM, "_model_generate", watched)
    copy = declaration(tmp_path)
    tasks = [f"udhr_translate:{copy}"]
    rows = evaluate(families.tiny_model("llama"), tokenizer, "yo", tasks, limit=3, shots=2)["tasks"]
    assert list(rows) == ["udhr_translate yo-en", "udhr_translate en-yo"]
    row = rows["udhr_translate yo-en"]
    pairs = parallel_paragraphs("yo", "test", f"udhr:{copy}")
    held_out = sorted(pairs, key=lambda pair: len(pair["text"]) + len(pair["english"]))[:3]
    shown = parallel_paragraphs("yo", "train", f"udhr:{copy}")
    assert row["references"] == [pair["english"] for pair in held_out]
    assert (row["shots"], row["items"], row["target"]) == (2, 3, "en")
    assert len(row["hypotheses"]) == 3
    assert "nw:2" in row["scores"]["chrF++"]["signature"]
    assert "tok:13a" in row["scores"]["BLEU"]["signature"]
    assert row["chance"] == row["scores"]["chrF++"]["floor"]
    assert {text.split("\n \n")[-1] for text in prompts[:3]} == {
        f" Yoruba: {pair['text']} \n English:" for pair in held_out
    }
    for text in prompts[:3]:
        assert sum(f"Yoruba: {pair['text']} \n English: {pair['english']} \n" in text for pair in shown) == 2
    assert all("English:" in text and text.endswith("Yoruba:") for text in prompts[3:])


@pytest.mark.parametrize("layout", ["flores", "flores_plus"])
def test_flores_is_read_from_a_local_copy(tokenizer, tmp_path, layout):
    texts = {code: [words(6, f"{code} {i}") for i in range(6)] for code in ("yor_Latn", "eng_Latn")}
    source = getattr(hub_layouts, layout)(tmp_path, texts)
    rows = evaluate(families.tiny_model("llama"), tokenizer, "yo", [source], limit=2)["tasks"]
    assert set(rows) == {f"{layout} yo-en", f"{layout} en-yo"}
    row = rows[f"{layout} en-yo"]
    assert row["references"] == load_parallel(source, ["yo", "en"], "test")["yo"][:2]
    assert (row["shots"], row["language"]) == (4, "yo")
    bare = evaluate(families.tiny_model("llama"), tokenizer, "yo", [source], limit=1, shots=0)["tasks"]
    assert bare[f"{layout} en-yo"]["shots"] == 0
    gone = evaluate(families.tiny_model("llama"), tokenizer, "is", [source])["tasks"][layout]["unavailable"]
    assert "has no text in Icelandic" in gone


def test_scores_are_those_of_the_corpus():
    references = ["the cat sat on the mat today", "a dog ran over the green hill"]
    perfect = score_translations(references, references, ["x", "y"], [], "en")
    assert perfect["BLEU"]["value"] == pytest.approx(100)
    assert perfect["chrF++"]["value"] == pytest.approx(100)
    assert perfect["chrF++"]["floor"] == 0
    half = score_translations([references[0], "no such thing"], references, references, [], "en")
    assert half["chrF++"]["low"] < half["chrF++"]["value"] < half["chrF++"]["high"]
    assert half["chrF++"]["floor"] == pytest.approx(100), "a source that is its own translation"
    worse = compare_translations(references * 9, [references[0], "no such thing"] * 9, references * 9, "en")
    assert worse["chrF++"]["difference"] < -20
    assert worse["chrF++"]["p"] < 0.05
    same = compare_translations(references, references, references, "en")
    assert same["BLEU"] == {"difference": 0.0, "p": 1.0}
    shown = score_translations(references, references, ["x", "y"], ["z", references[0]], "en")["chrF++"]
    assert 30 < shown["floor"] < 70, "one example each time is right once in two"
    for lang, kind in (("zh", "zh"), ("ja", "char"), ("th", "char"), ("yo", "13a")):
        assert f"tok:{kind}" in score_translations(["我"], ["我"], ["I"], [], lang)["BLEU"]["signature"]


# --- a run and its base ------------------------------------------------------------------------------------------


def row_of(correct, units=None, digest="x"):
    return {"tasks": {"t": {"correct": correct, "units": units or [*range(len(correct))], "digest": digest}}}


def test_answers_are_compared_question_by_question():
    before, after = [0, 1] * 20, [1, 1] * 18 + [0, 0] * 2
    change = compare_tasks(row_of(before), row_of(after))["t"]
    assert (change["gained"], change["lost"]) == (18, 2)
    assert change["difference"] == pytest.approx(16 / 40)
    assert 0.1 < change["low"] < 0.4 < change["high"] < 0.7
    clustered = compare_tasks(row_of(before, [*range(10)] * 4), row_of(after, [*range(10)] * 4))["t"]
    assert clustered["difference"] == pytest.approx(16 / 40)
    assert clustered["low"] != change["low"]
    assert compare_tasks(row_of([1, 0]), row_of([1, 1]))["t"]["low"] is None, "two questions are too few"
    still = compare_tasks(row_of(before), row_of(before))["t"]
    assert (still["difference"], still["low"], still["high"]) == (0, None, None), "no change is not certainty"
    texts = {"references": ["all are free"] * 4, "hypotheses": ["all are"] * 4, "target": "en", "digest": "x"}
    translated = {"tasks": {"t": texts}}, {"tasks": {"t": {**texts, "hypotheses": texts["references"]}}}
    change = compare_tasks(*translated)["t"]
    assert change["difference"] > 10
    assert change["p"] is change["BLEU"]["p"] is None, "four texts are too few"
    missing = {"tasks": {"t": {"unavailable": "gone"}}}
    assert compare_tasks(missing, row_of([1])) == compare_tasks(row_of([1]), missing) == {}
    with pytest.raises(ValueError, match="prompts of t were not the same before and after"):
        compare_tasks(row_of([1]), row_of([1], digest="y"))


def test_changes_are_written_with_what_is_known_of_their_uncertainty():
    question = {"language": "yo", "measure": "acc", "chance": 0.25, "value": 0.5, "items": 40}
    translation = {**question, "measure": "chrF++", "chance": 3.0, "value": 12.34, "hypotheses": []}
    rows = {
        "clear": (question, {"difference": 0.4, "low": 0.2, "high": 0.61, "gained": 18, "lost": 2}),
        "few": (question, {"difference": 0.5, "low": None, "high": None, "gained": 1, "lost": 0}),
        "none": (question, {"difference": 0.0, "low": None, "high": None, "gained": 0, "lost": 0}),
        "texts": (translation, {"difference": -1.26, "p": 0.034}),
    }
    results = {"tasks": {name: row for name, (row, _) in rows.items()}}
    results["tasks"]["gone"] = {"language": "en", "unavailable": "the hub cannot be reached"}
    changes = {name: change for name, (_, change) in rows.items()}
    scores = {"before": results, "after": results, "changes": changes}
    table = task_table(scores)
    assert table.change.to_dict() == {
        "clear": "+40.0 (+20.0 to +61.0)",
        "few": "+50.0 (fewer than 5: no interval)",
        "none": "0.0 (no answer changed)",
        "texts": "-1.3 (p 0.03)",
        "gone": "",
    }
    assert table.loc["clear"].tolist() == ["yo", "acc", "25.0", "50.0", "50.0", "+40.0 (+20.0 to +61.0)", "40"]
    assert table.loc["texts", ["chance", "base"]].tolist() == ["3.0", "12.3"]
    assert task_report(scores).splitlines()[-1] == "gone: the hub cannot be reached"


@pytest.fixture
def run(tokenizer, tmp_path, monkeypatch):
    """A tiny model with a trained adapter, in a run's folder; and the tasks to ask."""
    monkeypatch.chdir(tmp_path)
    families.tiny_model("llama").save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    model, tokenizer = load_model("tiny", load_in_8bit=False)
    text = [words(300, 1)]
    finetune(model, tokenizer, text, "lape", families.some_neurons(model), run_dir="run", window=16, learning_rate=0.05)
    copy = declaration(tmp_path / "udhr")
    return model, tokenizer, [f"udhr_match:{copy}", f"udhr_translate:{copy}", belebele(tmp_path / "b"), "flores"]


def test_a_run_is_asked_once_and_every_task_stays_in_the_table(run, monkeypatch, capsys):
    model, tokenizer, tasks = run
    monkeypatch.setattr("ssetools.text.hub.hub_reachable", lambda: False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    scores = get_task_scores(model, tokenizer, "yo", "run", tasks, limit=8)
    assert [scores[when]["adapter"]["active"] for when in ("before", "after")] == [False, True]
    kept = json.loads(Path("run/tasks.json").read_text())
    assert kept == json.loads(json.dumps(scores))
    assert Adapter.attached_to(model).active
    table = task_report(scores)
    lines = table.splitlines()
    assert lines[0].split() == ["language", "measure", "chance", "base", "tuned", "change", "questions"]
    assert lines[1].split()[:4] == ["udhr_match", "yo", "acc_mutual_info", "25.0"]
    assert "udhr_translate en-yo" in table
    assert [line for line in lines if line.startswith("flores ")][0].split() == ["flores", "yo", "unavailable"]
    assert "flores: FLORES-200 cannot be loaded from the hub (mteb/flores)" in lines[-1]
    asked = []
    monkeypatch.setattr("ssetools.report.evaluate", lambda *a, **o: asked.append(o) or scores["after"])
    get_task_scores(model, tokenizer, "yo", "run", tasks, limit=8)
    assert len(asked) == 2, "a task that could not be had is asked again"
    capsys.readouterr()
    for part in ("before", "after"):
        del kept[part]["tasks"]["flores"]
    kept["request"]["tasks"] = tasks[:3]
    Path("run/tasks.json").write_text(json.dumps(kept))
    assert get_task_scores(model, tokenizer, "yo", "run", tasks[:3], limit=8)["changes"] == kept["changes"]
    assert capsys.readouterr().out == "", "found, not asked again"
    monkeypatch.setattr("ssetools.report.model_precision", lambda model: {"dtype": "another"})
    get_task_scores(model, tokenizer, "yo", "run", tasks[:3], limit=8)
    assert len(asked) == 4, "answers in 16 bits are not those in 8"


def test_the_command_line_prints_one_table(run, monkeypatch, capsys):
    model, tokenizer, tasks = run
    monkeypatch.setattr("ssetools.cli._get_run", lambda arguments: (model, tokenizer, "run", None))
    assert cli.main(["evaluate", "yo", "--tasks", *tasks[:1], tasks[2], "--limit", "5"]) == 0
    shown = capsys.readouterr().out
    assert "udhr_match" in shown
    assert "belebele" in shown
    assert cli.main(["evaluate", "yo", "--tasks", "belebel"]) == 2
    assert "ssetools: Unknown task 'belebel'" in capsys.readouterr().err


# --- the embedded model --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.network
def test_the_embedded_model_matches_french_passages():
    """French is a language that the model knows: far above chance, or the task asks nothing."""
    model, tokenizer = load_model()
    found = evaluate(model, tokenizer, "fr", limit=6, tasks=["udhr_match"])
    row = found["tasks"]["udhr_match"]
    assert found["bos"] == "<bos>"
    assert row["items"] == 6
    assert row["value"] >= 4 / 6
