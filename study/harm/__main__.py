"""Makes the runs of the study: `python -m study.harm candidates comparison --corpora DIR --ntrex DIR --sib200 DIR`.

May be stopped and started again, and run in several processes at once. The table "shared" makes what all runs share, and
comes first where several processes start together.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ssetools.text.embedded import EMBEDDED_MODEL
from study.harm.recipes import runs_of
from study.harm.run import Study
from study.harm.text import RealText


def main() -> None:
    """Makes what is missing of the tables that are named, in order."""
    parser = argparse.ArgumentParser(prog="python -m study.harm", description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", nargs="+", help="candidates, comparison, placebo, rates, seeds, amounts, grid or shared"
    )
    parser.add_argument("--languages", nargs="+", help="only these languages")
    parser.add_argument("--tokens", type=int, help="training tokens in place of the table's")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--corpora", required=True, help="folder of running text, <lang>/*.txt")
    parser.add_argument("--ntrex", required=True, help="folder of NTREX sentences, <lang>.txt")
    parser.add_argument("--sib200", required=True, help="folder of SIB-200 in its hub layout")
    parser.add_argument("--results", default="book/results/harm", help="folder of results")
    parser.add_argument("--runs", default="runs", help="folder of the profile and of locks")
    arguments = parser.parse_args()
    text = RealText(Path(arguments.corpora), Path(arguments.ntrex), Path(arguments.sib200))
    study = Study(arguments.model, text, arguments.results, arguments.runs)
    for table in arguments.tables:
        if table == "shared":
            study.make_shared()
            continue
        wanted = [x for x in runs_of(table) if not arguments.languages or x[0] in arguments.languages]
        if arguments.tokens:
            wanted = [(lang, replace(recipe, tokens=arguments.tokens)) for lang, recipe in wanted]
        made = sum(study.make(lang, recipe) for lang, recipe in wanted)
        print(f"{table}: {made} of {len(wanted)} runs made now.", flush=True)


if __name__ == "__main__":
    main()
