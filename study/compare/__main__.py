"""Runs the comparison: `python -m study.compare yo is ka --ablations`. It can be interrupted and resumed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssetools.text.embedded import EMBEDDED_MODEL
from study.compare.comparison import Comparison
from study.compare.runs import METHODS
from study.compare.summary import write_summary


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and scores the runs that have no results yet, then writes the summary."""
    parser = argparse.ArgumentParser(prog="python -m study.compare", description=__doc__.splitlines()[0])
    parser.add_argument("langs", nargs="*", help="language codes, e.g. yo is ka; none only writes the summary again")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--runs", default="runs", help="folder of profiles, locks and adapters that are not scored yet")
    parser.add_argument("--methods", nargs="+", default=None, help="names of methods (default: all)")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=None,
        help="default: 0 1 2, or with --like one seed of the language's own",
    )
    parser.add_argument(
        "--like", nargs="+", default=[], help="languages whose rate search is used (default: the language itself)"
    )
    parser.add_argument(
        "--ablations", action="store_true", help="also vary the share of neurons, the amount of text and the budget"
    )
    parser.add_argument("--results", default="book/results/compare", help="folder of results")
    parser.add_argument("--other-text", default="sib200", help='text of the unseen genre: "sib200" or "sib200:FOLDER"')
    arguments = parser.parse_args(argv)
    comparison = Comparison(arguments.model, arguments.results, arguments.runs, arguments.other_text)
    for lang in arguments.langs:
        comparison.run_language(lang, arguments.methods or tuple(METHODS), arguments.seeds, arguments.like)
        if arguments.ablations:
            comparison.run_ablations(lang)
    print(f"results: {write_summary(arguments.results, arguments.model)}")


if __name__ == "__main__":
    main()
