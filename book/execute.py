"""Executes the notebooks of the book: a walk-through for every language, resumable, committed without noise.

Run: python book/execute.py [yo 01_profile lape ...] [--runs runs/book] [--other-text sib200:FOLDER]

Without names it makes what is missing, what lost an output, and what differs from its source in notebooks/; where only
prose differs nothing is executed. With names (language codes, notebooks, pages) it makes these anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import noise
import papermill
from making import claims, contents
from making.results import listed
from nbformat import NotebookNode

from ssetools.embedded_model import EMBEDDED_MODEL, gemma_folder
from ssetools.evaluation.intervals import percent
from ssetools.files import model_dir, run_dir, whole_file
from ssetools.languages import TARGET_LANGUAGES, get_language
from ssetools.report import percent_trained
from ssetools.text.embedded import has_apt, mediawiki_folder, udhr_folder
from study.compare.summary import results_digest

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
SOURCES = ROOT / "notebooks"
README = ROOT / "README.md"
PER_LANGUAGE = ("03_finetune", "04_evaluate")
NEEDS = {
    "02_select": "01_profile",
    "03_finetune": "01_profile",
    "04_evaluate": "03_finetune",
    "05_analyze": "03_finetune",
}
WALKTHROUGH = "yo"  # all other notebooks are executed once, for this language
OF_ALL = {"06_compare": "compare", "07_atlas": "atlas"}  # of all languages, each in a folder of its own


@dataclass(frozen=True)
class Job:
    """A notebook to execute: its source, the committed copy, and the language, None for pages that have none.

    A page of the book is its own source; it keeps a digest of the code that was executed.
    """

    source: Path
    output: Path
    lang: str | None = None

    @property
    def names(self) -> set[str]:
        """What selects it on the command line."""
        return {self.source.stem, *([self.lang] if self.source.stem in PER_LANGUAGE else [])}

    def wanted(self) -> NotebookNode:
        """Returns the source as the copy should have it: the parameter `lang` is the copy's own, and links are relative."""
        notebook = nbformat.read(self.source, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown" and self.source != self.output:
                cell.source = re.sub(r"\]\(([\w./]+\.(?:ipynb|md))\)", self._relink, cell.source)
            if self.lang and "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(r'(?m)^lang: str = "\w+"', f'lang: str = "{self.lang}"', cell.source)
        return notebook

    def _relink(self, link: re.Match) -> str:
        """Returns a link of the source as the copy needs it: to pages of the book, and to the walk-through's copies."""
        target = (SOURCES / link[1]).resolve()
        if target.parent == SOURCES:
            target = BOOK / OF_ALL.get(target.stem, f"languages/{WALKTHROUGH}") / target.name
        return f"]({os.path.relpath(target, self.output.parent)})"

    def state(self) -> str:
        """Returns "current", "prose" (only text or figure options differ from the source), or "stale"."""
        if not self.output.is_file():
            return "stale"
        made, wanted = nbformat.read(self.output, as_version=4), self.wanted()
        if noise.problems(made):
            return "stale"
        if self.source == self.output:
            return "current" if made.metadata.get("executed_code") == noise.code_digest(made) else "stale"
        if noise.code_digest(made) != noise.code_digest(wanted):
            return "stale"
        if self.source.stem == "06_compare" and made.metadata.get("results") != compared():
            return "stale"
        if self.source.stem == "03_finetune" and not (BOOK / "results" / f"{self.lang}.json").is_file():
            return "stale"
        return "current" if texts(made) == texts(wanted) else "prose"

    def refresh(self) -> None:
        """Takes prose and figure options from the source, and every output from the copy."""
        made, wanted = nbformat.read(self.output, as_version=4), self.wanted()
        outputs = iter([cell for cell in made.cells if cell.cell_type == "code"])
        for cell in wanted.cells:
            if cell.cell_type == "code":
                old = next(outputs)
                cell.outputs, cell.execution_count = old.outputs, old.execution_count
        wanted = noise.without_noise(wanted)
        if "results" in made.metadata:
            wanted.metadata["results"] = made.metadata["results"]
        write(wanted, self.output)

    def product(self, runs: str) -> Path:
        """Returns the file of the runs folder that this notebook makes and later ones find."""
        if self.source.stem == "03_finetune":
            return run_dir(EMBEDDED_MODEL, self.lang, "lape", 0, runs) / "metrics.json"
        return model_dir(EMBEDDED_MODEL, runs) / "profile.safetensors"

    def run(self, runs: str, other_text: str) -> None:
        """Executes the source and writes the copy. What it makes is made again, so that the reader sees it made."""
        if self.source.stem == "01_profile":
            self.product(runs).unlink(missing_ok=True)
        if self.source.stem == "03_finetune":
            shutil.rmtree(self.product(runs).parent, ignore_errors=True)
        made = executed(self.wanted(), {"runs": runs, "other_text": other_text, "lang": self.lang})
        if self.source == self.output:
            made.metadata["executed_code"] = noise.code_digest(made)
        if self.source.stem == "06_compare":
            made.metadata["results"] = compared()
        if found := noise.problems(made):
            raise ValueError(f"{self.source.name} ran, but is not fit for the book: {'; '.join(found)}.")
        if self.source.stem == "03_finetune":
            keep_numbers(self.lang, runs)
        if self.source.stem == "07_atlas":
            README.write_text(with_results_table(README.read_text(encoding="utf-8")), encoding="utf-8")
        write(made, self.output)


def jobs() -> list[Job]:
    """Returns all, in an order in which each finds what it needs: the walk-through, the other languages, the pages."""
    found = []
    for source in sorted(SOURCES.glob("*.ipynb")):
        folder = BOOK / OF_ALL.get(source.stem, f"languages/{WALKTHROUGH}")
        found.append(Job(source, folder / source.name, WALKTHROUGH))
    for lang in (code for code in TARGET_LANGUAGES if code != WALKTHROUGH):
        found += [Job(SOURCES / f"{s}.ipynb", BOOK / "languages" / lang / f"{s}.ipynb", lang) for s in PER_LANGUAGE]
    return found + [Job(page, page) for page in sorted(BOOK.glob("*.ipynb"))]


def plan(every: list[Job], names: set[str], runs: str) -> dict[Job, str]:
    """Returns the state of each notebook, of those that bear one of the names if there are names.

    What a stale notebook needs and would not find is stale too, and so is what shows a run that is made again.
    """
    if names:
        states = {job: "stale" if job.names & names else "current" for job in every}
    else:
        states = {job: job.state() for job in every}
    at = {(job.source.stem, job.lang): job for job in every}
    for job in reversed(every):
        need = NEEDS.get(job.source.stem)
        need = at.get((need, job.lang)) or at.get((need, WALKTHROUGH))
        if need and states[job] == "stale" and not need.product(runs).exists():
            states[need] = "stale"
    for job in every:
        if NEEDS.get(job.source.stem) == "03_finetune" and states[at["03_finetune", job.lang]] == "stale":
            states[job] = "stale"
    return states


def texts(notebook: NotebookNode) -> list:
    """Returns what a copy has in common with its source: each cell's kind, text and kept metadata."""
    return [
        (cell.cell_type, cell.source, {k: v for k, v in cell.metadata.items() if k in noise.KEPT_METADATA})
        for cell in notebook.cells
    ]


def executed(notebook: NotebookNode, parameters: dict) -> NotebookNode:
    """Runs a notebook with those of the parameters that it has; returns it with outputs, without noise."""
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "source.ipynb", Path(scratch) / "made.ipynb"
        nbformat.write(notebook, source)
        known = papermill.inspect_notebook(source)
        given = {name: value for name, value in parameters.items() if name in known}
        papermill.execute_notebook(source, made, given, progress_bar=False)
        return noise.without_noise(nbformat.read(made, as_version=4), parameters.get("runs", "runs"))


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes a notebook whole or not at all."""
    with whole_file(path) as scratch:
        nbformat.write(notebook, scratch)


def compared() -> str:
    """Returns the digest of the comparison's results, as they lie in the book."""
    return results_digest(model_dir(EMBEDDED_MODEL, BOOK / "results" / "compare"))


def keep_numbers(lang: str, runs: str) -> None:
    """Copies a run's numbers to book/results/, and makes the README's table that shows them anew."""
    metrics = run_dir(EMBEDDED_MODEL, lang, "lape", 0, runs) / "metrics.json"
    text = noise.calm(metrics.read_text(encoding="utf-8"), runs)
    kinds = list(json.loads(text)["summary"])
    if any(list(run["summary"]) != kinds for code, run in kept_numbers().items() if code != lang):
        raise ValueError(
            f"{metrics} is measured on {', '.join(kinds)}, and the other languages are not: with --other-text sib200:FOLDER "
            "it needs no hub."
        )
    with whole_file(BOOK / "results" / f"{lang}.json") as scratch:
        scratch.write_text(text, encoding="utf-8")
    README.write_text(with_results_table(README.read_text(encoding="utf-8")), encoding="utf-8")


def kept_numbers() -> dict[str, dict]:
    """Returns the numbers of all languages in book/results/, by code."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((BOOK / "results").glob("??.json"))}


def with_results_table(readme: str) -> str:
    """Returns the README with what stands between its markers made anew from book/results/."""
    runs = kept_numbers()
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run["summary"]))
    other = next(kind for kind in reversed(kinds) if any(kind not in run["same_kind"] for run in runs.values()))
    titles = [f"{kind} (another kind)" if kind == other else kind for kind in kinds]
    columns = ["language", "neurons", "weights trained", *titles, f"English, {other}", f"other languages, {other}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for lang, run in runs.items():
        summary, about = run["summary"], run["adapter"]
        moved = [percent(summary[kind]["target"]["percent"]) if kind in summary else "" for kind in kinds]
        kept = [percent(summary[other]["english"]["percent"]), percent(summary[other]["mean_of_others"])]
        cells = [get_language(lang).name, str(about["neurons"]), f"{percent_trained(about):.2f}%", *moved, *kept]
        lines.append(f"| {' | '.join(cells)} |")
    unclear = [get_language(lang).name for lang, run in runs.items() if holds_zero(run["summary"][other]["target"])]
    if unclear:
        lines += ["", f"The 95% interval of the change on {other} includes zero in {listed(unclear)}."]
    made = {"results": "\n".join(lines)}
    said = {"compare": claims.compared_findings(), "atlas": claims.atlas_findings()}
    made |= {mark: textwrap.fill(text, 120) for mark, text in said.items()}
    for mark, text in made.items():
        pattern = rf"(?s)(<!-- {mark} -->\n).*?(\n<!-- end -->)"
        readme = re.sub(pattern, lambda found, text=text: found[1] + text + found[2], readme)
    return readme


def holds_zero(moved: dict) -> bool:
    """Says whether a change has an interval, and zero lies within it."""
    return moved["low"] is not None and moved["low"] <= 0 <= moved["high"]


def fetch_all() -> None:
    """Fetches and converts what a first use lacks, so that no page shows it."""
    gemma_folder()
    udhr_folder()
    if has_apt():
        mediawiki_folder()


def main() -> None:
    """Executes what is asked for, or all that is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="language codes, notebooks or pages to execute anew; none: what is stale"
    )
    parser.add_argument("--runs", default="runs/book", help="a folder of its own: runs in it are made again")
    parser.add_argument("--other-text", default="sib200")
    arguments = parser.parse_args()
    every = jobs()
    known = set().union(*(job.names for job in every))
    if strange := set(arguments.names) - known:
        parser.error(f"unknown name {min(strange)!r}; use {', '.join(sorted(known))}")
    states = plan(every, set(arguments.names), arguments.runs)
    stale = [job for job, state in states.items() if state == "stale"]
    print(f"{len(stale)} of {len(every)} notebooks to execute.", flush=True)
    if stale:
        fetch_all()
    for job in stale:
        # A copy that shows an older run than its neighbour must not be taken for current when this is interrupted.
        if NEEDS.get(job.source.stem) == "03_finetune":
            job.output.unlink(missing_ok=True)
    for job, state in states.items():
        started = time.monotonic()
        if state == "stale":
            job.run(arguments.runs, arguments.other_text)
            contents.write()
            seconds = time.monotonic() - started
            print(f"{job.output.relative_to(ROOT)}: executed in {seconds:.0f} s", flush=True)
        elif state == "prose":
            job.refresh()
            print(f"{job.output.relative_to(ROOT)}: prose taken from its source", flush=True)


if __name__ == "__main__":
    main()
