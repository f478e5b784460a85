"""Executes the walk-through of a language with papermill and keeps it for the book, without noise.

Run: python book/execute.py yo [--runs runs] [--other-text sib200:FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

from ssetools import plots
from ssetools.languages import get_language
from ssetools.report import percent_trained

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
README = ROOT / "README.md"
ONCE = ("01_profile", "02_select")  # the same for every language, executed with the first
PER_LANGUAGE = ("03_finetune", "04_evaluate")
WALKTHROUGH = "yo"
OF_ALL = {"compare": "06_compare", "atlas": "07_atlas"}  # of all languages: `python book/execute.py atlas`
LAST = ("05_analyze",)  # of the walk-through language alone
_NOISE = [
    (re.compile(r" +\d+ tokens/s"), ""),
    (re.compile(r"sib200:[^\s'\",]+"), "sib200"),
    (re.compile(r", [\d.]+ minutes, [\d.]+ GiB"), ""),
]


def main() -> None:
    """Executes the notebooks of one language into book/languages/<code>/ and its numbers into book/results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lang", help='language code, or "compare" or "atlas"')
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--other-text", default="sib200")
    arguments = parser.parse_args()
    if arguments.lang in OF_ALL:
        name = OF_ALL[arguments.lang]
        execute(name, BOOK / arguments.lang / f"{name}.ipynb", {})
        return
    lang = get_language(arguments.lang).code
    for name in (*ONCE, *PER_LANGUAGE, *LAST) if lang == WALKTHROUGH else PER_LANGUAGE:
        parameters = {"runs": arguments.runs}
        if name not in ONCE:
            parameters |= {"lang": lang, "other_text": arguments.other_text}
        execute(name, BOOK / "languages" / lang / f"{name}.ipynb", parameters)
    if lang == WALKTHROUGH:
        execute_in_place("lape")
    metrics = next(Path(arguments.runs).glob(f"gemma-3-270m/{lang}/lape-seed0/metrics.json"))
    text = calm(metrics.read_text(encoding="utf-8"), arguments.runs)
    (BOOK / "results").mkdir(exist_ok=True)
    (BOOK / "results" / f"{lang}.json").write_text(text, encoding="utf-8")
    draw_gain(lang)
    README.write_text(with_results_table(README.read_text(encoding="utf-8")), encoding="utf-8")


def draw_gain(lang: str) -> None:
    """Draws the front page's figure from a result file."""
    metrics = json.loads((BOOK / "results" / f"{lang}.json").read_text(encoding="utf-8"))
    plots.before_after(metrics, lang).savefig(BOOK / "figures" / f"gain-{lang}.svg", metadata={"Date": None})


def with_results_table(readme: str) -> str:
    """Returns the README with the table between its markers made anew from book/results/."""
    lines = ["| language | weights trained | text | target | English | 21 others, mean |", "|---|---|---|---|---|---|"]
    for path in sorted((BOOK / "results").glob("??.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        about = metrics["adapter"]
        label = f"{get_language(about['language']).name} ({about['neurons']} neurons) | "
        label += f"{percent_trained(about):.2f}%"
        for kind, found in metrics["summary"].items():
            relation = "" if kind in metrics["same_kind"] else " (another kind)"
            cells = [f"{found[who]['percent']:+.1f}%" for who in ("target", "english")]
            lines.append(f"| {label} | {kind}{relation} | {' | '.join(cells)} | {found['mean_of_others']:+.1f}% |")
            label = " | "
    table = "\n".join(lines)
    return re.sub(r"(?s)(<!-- results -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table + m[2], readme)


def execute_in_place(page: str) -> None:
    """Runs a page of the book that is a notebook of its own."""
    execute(page, BOOK / f"{page}.ipynb", {}, BOOK / f"{page}.ipynb")


def execute(name: str, output: Path, parameters: dict, source: Path | None = None) -> None:
    """Runs one notebook and writes it with outputs but without paths, timings and standard error."""
    source = source or ROOT / "notebooks" / f"{name}.ipynb"
    print(f"{name} -> {output.relative_to(ROOT)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / output.name
        papermill.execute_notebook(source, made, parameters, progress_bar=False)
        notebook = nbformat.read(made, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        for cell in notebook.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
            if cell.cell_type == "code":
                if "parameters" in cell.metadata.get("tags", []) and "lang" in parameters:
                    cell.source = re.sub(r'(?m)^lang: str = "\w+"', f'lang: str = "{parameters["lang"]}"', cell.source)
                cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
                for shown in cell.outputs:
                    if "text" in shown:
                        shown["text"] = calm(shown["text"], parameters.get("runs", "runs"))
        notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, made)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, output)


def calm(text: str, runs: str) -> str:
    """Takes out of a text what differs from machine to machine and from run to run."""
    text = text.replace(f"{runs.rstrip('/')}/", "runs/")
    for pattern, quiet in _NOISE:
        text = pattern.sub(quiet, text)
    return text


if __name__ == "__main__":
    main()
