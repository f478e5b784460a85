"""Executes the notebooks of the book, a walk-through for every language, and saves copies without run-specific details.

Run: python book/execute.py [yo 01_profile lape ...] [--runs runs/book] [--other-text sib200:FOLDER]

Without names it executes the notebooks that are missing, lack an output, or differ from their source in notebooks/; where
only prose differs, it copies the prose. With names (language codes, notebooks, pages) it executes these again. It can be
interrupted and resumed.
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
from making import claims, contents, harm
from making.results import join_words, trained_how
from nbformat import NotebookNode

from ssetools.evaluation.intervals import percent
from ssetools.files import atomic_write, model_dir, run_dir
from ssetools.languages import TARGET_LANGUAGES, get_language
from ssetools.report import percent_trained
from ssetools.text.embedded import EMBEDDED_MODEL, embedded_folder, has_apt, mediawiki_folder, udhr_folder
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
WALKTHROUGH = "yo"  # the language of the notebooks that are executed once
ALL_LANGUAGES = {"06_compare": "compare", "07_atlas": "atlas"}  # notebooks on all languages, and their folders


@dataclass(frozen=True)
class Job:
    """A notebook to execute: its source, the committed copy, and the language (None for pages without one).

    A page of the book is its own source; it records a digest of the code that was executed.
    """

    source: Path
    output: Path
    lang: str | None = None

    @property
    def names(self) -> set[str]:
        """Names that select this notebook on the command line."""
        return {self.source.stem, *([self.lang] if self.source.stem in PER_LANGUAGE else [])}

    def wanted(self) -> NotebookNode:
        """Returns the source with the parameter `lang` of the copy, and with links relative to the copy."""
        notebook = nbformat.read(self.source, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown" and self.source != self.output:
                cell.source = re.sub(r"\]\(([\w./]+\.(?:ipynb|md))\)", self._relative_link, cell.source)
            if self.lang and "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(r'(?m)^lang: str = "\w+"', f'lang: str = "{self.lang}"', cell.source)
        return notebook

    def _relative_link(self, link: re.Match) -> str:
        """Returns a link of the source relative to the copy: to a page of the book, or to the walk-through's copy."""
        target = (SOURCES / link[1]).resolve()
        if target.parent == SOURCES:
            target = BOOK / ALL_LANGUAGES.get(target.stem, f"languages/{WALKTHROUGH}") / target.name
        return f"]({os.path.relpath(target, self.output.parent)})"

    def state(self) -> str:
        """Returns "current", "prose" (only text or figure options differ from the source) or "stale"."""
        if not self.output.is_file():
            return "stale"
        made, wanted = nbformat.read(self.output, as_version=4), self.wanted()
        if noise.problems(made):
            return "stale"
        if self.source == self.output:
            return "current" if made.metadata.get("executed_code") == noise.code_digest(made) else "stale"
        if noise.code_digest(made) != noise.code_digest(wanted):
            return "stale"
        if self.source.stem == "06_compare" and made.metadata.get("results") != comparison_digest():
            return "stale"
        if self.source.stem == "03_finetune" and not (BOOK / "results" / f"{self.lang}.json").is_file():
            return "stale"
        return "current" if texts(made) == texts(wanted) else "prose"

    def refresh(self) -> None:
        """Updates the copy's prose and figure options from the source, and keeps its outputs."""
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
        """Returns the file in the runs folder that this notebook writes and later ones read."""
        if self.source.stem == "03_finetune":
            return run_dir(EMBEDDED_MODEL, self.lang, "specific", 0, runs) / "metrics.json"
        return model_dir(EMBEDDED_MODEL, runs) / "profile.safetensors"

    def run(self, runs: str, other_text: str) -> None:
        """Executes the source and writes the copy; existing results of this notebook are deleted first, so that it shows their
        computation."""
        if self.source.stem == "01_profile":
            self.product(runs).unlink(missing_ok=True)
        if self.source.stem == "03_finetune":
            shutil.rmtree(self.product(runs).parent, ignore_errors=True)
        made = executed(self.wanted(), {"runs": runs, "other_text": other_text, "lang": self.lang})
        if self.source == self.output:
            made.metadata["executed_code"] = noise.code_digest(made)
        if self.source.stem == "06_compare":
            made.metadata["results"] = comparison_digest()
        if problems := noise.problems(made):
            raise ValueError(
                f"{self.source.name} was executed, but cannot be published: {'; '.join(problems)}. Correct the notebook, and "
                "execute it again."
            )
        if self.source.stem == "03_finetune":
            save_metrics(self.lang, runs)
        if self.source.stem == "07_atlas":
            update_readme()
        write(made, self.output)


def jobs() -> list[Job]:
    """Returns all notebooks in the order of their dependencies: the walk-through, the other languages, the pages."""
    every = []
    for source in sorted(SOURCES.glob("*.ipynb")):
        folder = BOOK / ALL_LANGUAGES.get(source.stem, f"languages/{WALKTHROUGH}")
        every.append(Job(source, folder / source.name, WALKTHROUGH))
    for lang in (code for code in TARGET_LANGUAGES if code != WALKTHROUGH):
        every += [Job(SOURCES / f"{s}.ipynb", BOOK / "languages" / lang / f"{s}.ipynb", lang) for s in PER_LANGUAGE]
    return every + [Job(page, page) for page in sorted(BOOK.glob("*.ipynb"))]


def plan(every: list[Job], names: set[str], runs: str) -> dict[Job, str]:
    """Returns the state of each notebook; with names, notebooks with one of the names are stale and all others current.

    A notebook is also stale if it writes a missing file that a stale notebook reads, or shows a run that is repeated.
    """
    if names:
        states = {job: "stale" if job.names & names else "current" for job in every}
    else:
        states = {job: job.state() for job in every}
    by_name = {(job.source.stem, job.lang): job for job in every}
    for job in reversed(every):
        need = NEEDS.get(job.source.stem)
        need = by_name.get((need, job.lang)) or by_name.get((need, WALKTHROUGH))
        if need and states[job] == "stale" and not need.product(runs).exists():
            states[need] = "stale"
    for job in every:
        if NEEDS.get(job.source.stem) == "03_finetune" and states[by_name["03_finetune", job.lang]] == "stale":
            states[job] = "stale"
    return states


def texts(notebook: NotebookNode) -> list:
    """Returns what a copy has in common with its source: the type, text and committed metadata of each cell."""
    return [
        (cell.cell_type, cell.source, {k: v for k, v in cell.metadata.items() if k in noise.KEPT_METADATA})
        for cell in notebook.cells
    ]


def executed(notebook: NotebookNode, parameters: dict) -> NotebookNode:
    """Executes a notebook with those of the parameters that it has; returns it without run-specific details."""
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "source.ipynb", Path(scratch) / "made.ipynb"
        nbformat.write(notebook, source)
        names = papermill.inspect_notebook(source)
        given = {name: value for name, value in parameters.items() if name in names}
        papermill.execute_notebook(source, made, given, progress_bar=False)
        return noise.without_noise(nbformat.read(made, as_version=4), parameters.get("runs", "runs"))


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes a notebook atomically."""
    with atomic_write(path) as scratch:
        nbformat.write(notebook, scratch)


def comparison_digest() -> str:
    """Returns the digest of the comparison's results in the book."""
    return results_digest(model_dir(EMBEDDED_MODEL, BOOK / "results" / "compare"))


def save_metrics(lang: str, runs: str) -> None:
    """Copies a run's metrics to book/results/, and updates the README, which shows them.

    Raises:
        ValueError: If the metrics are on other genres than those of the other languages.
    """
    path = run_dir(EMBEDDED_MODEL, lang, "specific", 0, runs) / "metrics.json"
    text = noise.without_run_details(path.read_text(encoding="utf-8"), runs)
    genres = list(json.loads(text)["summary"])
    if any(list(metrics["summary"]) != genres for code, metrics in saved_metrics().items() if code != lang):
        raise ValueError(
            f"{path} is measured on {', '.join(genres)}, and the other languages are not: with --other-text sib200:FOLDER "
            "it needs no hub."
        )
    with atomic_write(BOOK / "results" / f"{lang}.json") as scratch:
        scratch.write_text(text, encoding="utf-8")
    update_readme()


def saved_metrics() -> dict[str, dict]:
    """Returns the metrics of all languages in book/results/, by code."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((BOOK / "results").glob("??.json"))}


def update_readme() -> None:
    """Regenerates the parts of the README that show results."""
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_results(readme: str) -> str:
    """Returns the README with the text between its markers regenerated from book/results/."""
    metrics = saved_metrics()
    genres = list(dict.fromkeys(genre for x in metrics.values() for genre in x["summary"]))
    unseen = next(genre for genre in reversed(genres) if any(genre not in x["same_kind"] for x in metrics.values()))
    titles = [f"{genre} (unseen genre)" if genre == unseen else genre for genre in genres]
    columns = ["language", "neurons", "weights trained", *titles, f"English, {unseen}", f"other languages, {unseen}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for lang, x in metrics.items():
        summary, adapter = x["summary"], x["adapter"]
        target = [percent(summary[genre]["target"]["percent"]) if genre in summary else "" for genre in genres]
        others = [percent(summary[unseen]["english"]["percent"]), percent(summary[unseen]["mean_of_others"])]
        cells = [get_language(lang).name, str(adapter["neurons"]), f"{percent_trained(adapter):.2f}%", *target, *others]
        lines.append(f"| {' | '.join(cells)} |")
    inconclusive = [
        get_language(lang).name for lang, x in metrics.items() if includes_zero(x["summary"][unseen]["target"])
    ]
    if inconclusive:
        lines += ["", f"The 95% interval of the change on {unseen} includes zero in {join_words(inconclusive)}."]
    texts = {"results": "\n".join([*lines, "", textwrap.fill(trained_how(), 120)])}
    described = {"harm": harm.describe(), "compare": claims.describe_comparison(), "atlas": claims.describe_atlas()}
    for mark, text in described.items():
        texts[mark] = textwrap.fill(text, 120)
    for mark, text in texts.items():
        pattern = rf"(?s)(<!-- {mark} -->\n).*?(\n<!-- end -->)"
        readme = re.sub(pattern, lambda match, text=text: match[1] + text + match[2], readme)
    return readme


def includes_zero(change: dict) -> bool:
    """Returns whether a change has an interval that includes zero."""
    return change["low"] is not None and change["low"] <= 0 <= change["high"]


def fetch_all() -> None:
    """Fetches and converts the model and texts before the notebooks, which would otherwise show the downloads."""
    embedded_folder()
    udhr_folder()
    if has_apt():
        mediawiki_folder()


def main() -> None:
    """Executes the requested notebooks, or all that are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="language codes, notebooks or pages to execute again; none: those that are stale"
    )
    parser.add_argument("--runs", default="runs/book", help="a separate folder: the runs in it are repeated")
    parser.add_argument("--other-text", default="sib200", help='text of the unseen genre: "sib200" or "sib200:FOLDER"')
    arguments = parser.parse_args()
    every = jobs()
    known = set().union(*(job.names for job in every))
    if unknown := set(arguments.names) - known:
        parser.error(f"unknown name {min(unknown)!r}; use one of {', '.join(sorted(known))}")
    states = plan(every, set(arguments.names), arguments.runs)
    stale = [job for job, state in states.items() if state == "stale"]
    print(f"{len(stale)} of {len(every)} notebooks to execute.", flush=True)
    if stale:
        fetch_all()
    for job in stale:
        # Deleted first, so that after an interruption no copy of an older run counts as current.
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
            print(f"{job.output.relative_to(ROOT)}: prose updated from its source", flush=True)


if __name__ == "__main__":
    main()
