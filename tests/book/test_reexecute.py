"""The comparison of a run with the book: equal runs pass, and each number outside its tolerance is reported."""

import copy
import json

import execute
import nbformat
import pytest
import reexecute

COMMITTED = json.loads((execute.BOOK / "results" / "yo.json").read_text(encoding="utf-8"))


@pytest.fixture
def here():
    return copy.deepcopy(COMMITTED)


def failed(here):
    return [number.name for number in reexecute.compare_numbers(COMMITTED, here) if not number.within_tolerance]


def test_a_run_agrees_with_itself(here):
    numbers = reexecute.compare_numbers(COMMITTED, here)
    genres, languages = ("articles", "messages", "sentences"), [*COMMITTED["before"]["articles"]]
    assert {number.name for number in numbers} == {
        "neurons",
        *(f"{genre}, {lang}, base perplexity" for genre in genres for lang in languages),
        *(f"{genre}, {who}, change in percent" for genre in genres for who in ("yo", "English", "mean of the others")),
    }
    assert all(number.within_tolerance and number.difference == 0 for number in numbers)


def test_a_machine_without_bfloat16_is_within_tolerance(here):
    """What such a machine has given: fewer neurons, slightly other perplexities."""
    here["adapter"]["neurons"] = round(0.993 * here["adapter"]["neurons"])
    for kind in ("articles", "messages", "sentences"):
        here["before"][kind]["yo"]["perplexity"] *= 0.996
    here["before"]["sentences"]["ne"]["perplexity"] *= 1 - 0.0211
    assert failed(here) == []


def test_each_number_outside_its_tolerance_is_reported(here):
    here["adapter"]["neurons"] = round(0.96 * here["adapter"]["neurons"])
    here["before"]["articles"]["yo"]["perplexity"] *= 1.02
    here["before"]["messages"]["sk"]["perplexity"] *= 0.94
    here["summary"]["sentences"]["target"]["percent"] += 4.1
    here["summary"]["sentences"]["english"]["percent"] -= 1.1
    here["summary"]["messages"]["mean_of_others"] += 1.1
    assert failed(here) == [
        "neurons",
        "articles, yo, base perplexity",
        "messages, sk, base perplexity",
        "messages, mean of the others, change in percent",
        "sentences, yo, change in percent",
        "sentences, English, change in percent",
    ]


def test_genres_that_are_unavailable_are_left_out(here):
    for part in ("before", "after", "summary"):
        del here[part]["sentences"]
    genres = {number.name.split(",")[0] for number in reexecute.compare_numbers(COMMITTED, here)}
    assert genres == {"neurons", "articles", "messages"}
    here["summary"] = {}
    with pytest.raises(ValueError, match="no genre in common"):
        reexecute.compare_numbers(COMMITTED, here)


def test_a_run_on_other_text_is_refused(here):
    here["adapter"]["source"] = "mediawiki"
    with pytest.raises(ValueError, match="trained differently: udhr\\+mediawiki"):
        reexecute.compare_numbers(COMMITTED, here)


def test_a_cell_with_another_kind_of_output_is_reported():
    book = nbformat.read(execute.BOOK / "languages" / "yo" / "04_evaluate.ipynb", as_version=4)
    assert reexecute.compare_outputs(book, book) == []
    other = copy.deepcopy(book)
    drawn = next(c for c in other.cells if "plots.retention" in c.source)
    drawn.outputs = [nbformat.v4.new_output("stream", name="stdout", text="no figure")]
    lacking, shown = reexecute.compare_outputs(book, other)
    assert "lacks its output: figure" in lacking
    assert shown.endswith("shows ['text'] where the book has ['figure']")
