"""The comparison of a run with the book: it passes itself, and fails on each number that is too far away."""

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
    return [one.name for one in reexecute.hold_numbers(COMMITTED, here) if not one.holds]


def test_a_run_holds_against_itself(here):
    held = reexecute.hold_numbers(COMMITTED, here)
    assert len(held) == 1 + 3 * (22 + 3)
    assert all(one.holds and one.difference == 0 for one in held)


def test_a_machine_without_bfloat16_holds(here):
    """What such a machine has given: fewer neurons, slightly other perplexities."""
    here["adapter"]["neurons"] = 429
    for kind, perplexity in (("articles", 61.49), ("messages", 90.88), ("sentences", 149.03)):
        here["before"][kind]["yo"]["perplexity"] = perplexity
    here["before"]["sentences"]["ne"]["perplexity"] *= 1 - 0.0211
    assert failed(here) == []


def test_each_number_that_is_too_far_is_named(here):
    here["adapter"]["neurons"] = 415
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


def test_kinds_that_cannot_be_had_are_left_out(here):
    for part in ("before", "after", "summary"):
        del here[part]["sentences"]
    assert len(reexecute.hold_numbers(COMMITTED, here)) == 1 + 2 * (22 + 3)
    here["summary"] = {}
    with pytest.raises(ValueError, match="No kind of text in common"):
        reexecute.hold_numbers(COMMITTED, here)


def test_a_run_on_other_text_is_not_compared(here):
    here["adapter"]["source"] = "mediawiki"
    with pytest.raises(ValueError, match="trained otherwise: udhr\\+mediawiki"):
        reexecute.hold_numbers(COMMITTED, here)


def test_a_cell_that_shows_something_else_is_named():
    book = nbformat.read(execute.BOOK / "languages" / "yo" / "04_evaluate.ipynb", as_version=4)
    assert reexecute.hold_outputs(book, book) == []
    other = copy.deepcopy(book)
    drawn = next(c for c in other.cells if "plots.retention" in c.source)
    drawn.outputs = [nbformat.v4.new_output("stream", name="stdout", text="no figure")]
    lost, shown = reexecute.hold_outputs(book, other)
    assert "has lost its output: figure" in lost
    assert shown.endswith("shows ['text'] where the book has ['figure']")
