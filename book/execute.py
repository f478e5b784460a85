"""Executes the walk-through of a language with papermill and keeps it for the book, without noise.

Run: python book/execute.py yo [--runs runs] [--other-text sib200:FOLDER]
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

from ssetools.languages import get_language

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
ONCE = ("01_profile", "02_select")  # the same for every language, executed with the first
PER_LANGUAGE = ("03_finetune", "04_evaluate")
WALKTHROUGH = "yo"
# What differs from machine to machine and from run to run.
_NOISE = [
    (re.compile(r" +\d+ tokens/s"), ""),
    (re.compile(r"sib200:\S+"), "sib200"),
    (re.compile(r", [\d.]+ minutes"), ""),
]


def main() -> None:
    """Executes the notebooks of one language into book/languages/<code>/ and its numbers into book/results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lang")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--other-text", default="sib200")
    arguments = parser.parse_args()
    lang = get_language(arguments.lang).code
    for name in (*ONCE, *PER_LANGUAGE) if lang == WALKTHROUGH else PER_LANGUAGE:
        parameters = {"runs": arguments.runs}
        if name in PER_LANGUAGE:
            parameters |= {"lang": lang, "other_text": arguments.other_text}
        execute(name, BOOK / "languages" / lang / f"{name}.ipynb", parameters)
    metrics = next(Path(arguments.runs).glob(f"gemma-3-270m/{lang}/lape-seed0/metrics.json"))
    text = re.sub(r"sib200:[^\"]+", "sib200", metrics.read_text(encoding="utf-8"))
    (BOOK / "results").mkdir(exist_ok=True)
    (BOOK / "results" / f"{lang}.json").write_text(text, encoding="utf-8")


def execute(name: str, output: Path, parameters: dict) -> None:
    """Runs one notebook and writes it with outputs but without paths, timings and standard error."""
    print(f"{name} -> {output.relative_to(ROOT)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / output.name
        papermill.execute_notebook(ROOT / "notebooks" / f"{name}.ipynb", made, parameters, progress_bar=False)
        notebook = nbformat.read(made, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        for cell in notebook.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
            if cell.cell_type == "code":
                if "parameters" in cell.metadata.get("tags", []) and "lang" in parameters:
                    cell.source = re.sub(r'(?m)^lang: str = "\w+"', f'lang: str = "{parameters["lang"]}"', cell.source)
                cell.outputs = [_quiet(out) for out in cell.outputs if out.get("name") != "stderr"]
        notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, made)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, output)


def _quiet(output):
    if "text" in output:
        for pattern, calm in _NOISE:
            output["text"] = pattern.sub(calm, output["text"])
    return output


if __name__ == "__main__":
    main()
