"""Executes the walk-through of one language again, and holds it against the book: what each cell shows, and the numbers.

Run: python book/reexecute.py [yo] [--runs runs/again] [--other-text sib200]

The text that trains is the committed run's, so that the numbers compare also where the text of another kind cannot be
had; kinds of text that were measured in both are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass

import execute
import nbformat
import noise

from ssetools.report import report
from ssetools.training.loop import TrainingSettings

# How far two machines may differ. The same commit on a CPU without bfloat16 instructions once gave Yoruba 429 neurons
# for 432 (-0.7%), and base perplexities up to 0.5% apart for Yoruba and English and up to 2.1% for the others, of which
# only some 300 tokens are scored. Three orders of the training text, at three times the rate, moved Yoruba's change by
# 1.8 points on sentences and 5.4 on articles, and English by 0.4: rounding does less than the order of the text.
NEURONS = 3.0  # percent of the number
BASE = 1.5  # percent of the base's perplexity, for the language and English
BASE_OF_OTHERS = 5.0  # and for every other language
CHANGE = 4.0  # points: the language's change of perplexity in percent
CHANGE_OF_OTHERS = 1.0  # points: English, and the mean of the other languages


@dataclass(frozen=True)
class Held:
    """One number of the book beside the same number here; `difference` and `allowed` are percent or points."""

    name: str
    committed: float
    here: float
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.allowed

    def __str__(self) -> str:
        verdict = "" if self.holds else "   TOO FAR"
        numbers = f"{self.committed:>10.2f}{self.here:>10.2f}{self.difference:>+9.2f}"
        return f"  {self.name:<44}{numbers}  (at most {self.allowed:g}){verdict}"


def hold_numbers(committed: dict, here: dict) -> list[Held]:
    """Compares two `metrics.json` of the same language.

    Raises:
        ValueError: If they share no kind of text, or the runs trained on different text.
    """
    old, new = committed["adapter"], here["adapter"]
    # A setting that is newer than the committed run had its default there.
    was, now = (TrainingSettings(**one["settings"]) for one in (old, new))
    if (old["source"], was) != (new["source"], now):
        raise ValueError(
            f"The runs trained otherwise: {old['source']}, {old['settings']}; {new['source']}, {new['settings']}."
        )
    kinds = [kind for kind in committed["summary"] if kind in here["summary"]]
    if not kinds:
        raise ValueError(f"No kind of text in common: {list(committed['summary'])} and {list(here['summary'])}.")
    lang = old["language"]
    held = [_relative("neurons", old["neurons"], new["neurons"], NEURONS)]
    for kind in kinds:
        for code, score in committed["before"][kind].items():
            allowed = BASE if code in (lang, "en") else BASE_OF_OTHERS
            now = here["before"][kind][code]["perplexity"]
            held.append(_relative(f"{kind}, {code}, base perplexity", score["perplexity"], now, allowed))
        old, new = committed["summary"][kind], here["summary"][kind]
        for name, one, two, allowed in (
            (lang, old["target"]["percent"], new["target"]["percent"], CHANGE),
            ("English", old["english"]["percent"], new["english"]["percent"], CHANGE_OF_OTHERS),
            ("mean of the others", old["mean_of_others"], new["mean_of_others"], CHANGE_OF_OTHERS),
        ):
            held.append(Held(f"{kind}, {name}, change in percent", one, two, two - one, allowed))
    return held


def _relative(name: str, old: float, new: float, allowed: float) -> Held:
    return Held(name, old, new, 100 * (new / old - 1), allowed)


def hold_outputs(committed: nbformat.NotebookNode, here: nbformat.NotebookNode) -> list[str]:
    """Names the cells that show something else than in the book: text where a figure was, or nothing."""
    found = noise.problems(here)
    for number, (old, new) in enumerate(zip(committed.cells, here.cells, strict=True)):
        if old.cell_type == "code" and noise.output_kinds(old) != noise.output_kinds(new):
            shown = f"{noise.output_kinds(new) or 'nothing'} where the book has {noise.output_kinds(old) or 'nothing'}"
            found.append(f"cell {number} shows {shown}")
    return found


def main() -> None:
    """Executes, prints both beside each other, and ends with 1 if they are too far apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lang", nargs="?", default="yo")
    parser.add_argument("--runs", default="runs/again", help="a folder of its own: the run in it is made again")
    parser.add_argument("--other-text", default="sib200")
    arguments = parser.parse_args()
    started = time.monotonic()
    execute.fetch_all()
    committed = json.loads((execute.BOOK / "results" / f"{arguments.lang}.json").read_text(encoding="utf-8"))
    given = {"runs": arguments.runs, "other_text": arguments.other_text, "lang": arguments.lang}
    given["source"] = committed["adapter"]["source"]
    jobs = [j for j in execute.jobs() if j.source.stem in execute.PER_LANGUAGE and j.lang == arguments.lang]
    metrics = jobs[0].product(arguments.runs)
    shutil.rmtree(metrics.parent, ignore_errors=True)
    differ = []
    for job in jobs:
        made = execute.executed(job.wanted(), given)
        execute.write(made, metrics.parents[3] / f"{arguments.lang}-{job.source.name}")
        book = nbformat.read(job.output, as_version=4)
        differ += [f"{job.output.relative_to(execute.ROOT)}: {words}" for words in hold_outputs(book, made)]
    here = json.loads(metrics.read_text(encoding="utf-8"))
    held = hold_numbers(committed, here)
    print(report(here), f"\n\n  {'':<44}{'the book':>10}{'here':>10}{'apart':>9}", *held, *differ, sep="\n")
    far = sum(not one.holds for one in held)
    seconds = time.monotonic() - started
    print(f"{len(held)} numbers compared in {seconds:.0f} s: {far} too far apart, {len(differ)} cells differ.")
    sys.exit(1 if far or differ else 0)


if __name__ == "__main__":
    main()
