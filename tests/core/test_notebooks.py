"""Notebooks: one anatomy, short cells, no outputs in the sources, one address, parameters checked first."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import execute
import nbformat
import noise
import pytest
import yaml

from ssetools.notebook import check_parameters
from study.compare.summary import results_digest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted(
    path for where in ("languages/*", "compare", "atlas") for path in (ROOT / "book").glob(f"{where}/*.ipynb")
)
JOBS = {job.output: job for job in execute.jobs()}
PAGES = [path for path, job in JOBS.items() if job.source == path]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


def cells(path, kind):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def parameter_names(path):
    (cell,) = [c for c in cells(path, "code") if "parameters" in c["metadata"].get("tags", [])]
    return [node.target.id for node in ast.parse(source(cell)).body]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_anatomy(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    for part in ("**What you will learn**", "**Cost**", "## What we have seen", "**Next**"):
        assert part in text, f"{path.name} lacks {part}"
    code = cells(path, "code")
    assert "google.colab" in source(code[0])
    assert f"git+{ADDRESS}" in source(code[0]), "the install cell must name the address in _config.yml"
    assert "parameters" in code[1]["metadata"]["tags"]
    assert "check_parameters(" in source(code[2])
    names = re.findall(r"(\w+)=\1", source(code[2]))
    assert sorted(names) == sorted(parameter_names(path)), "every parameter is checked"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_cells_are_short_and_without_output(path):
    for cell in cells(path, "code"):
        if not {"parameters"} & set(cell["metadata"].get("tags", [])) and "check_parameters(" not in source(cell):
            assert len(cell["source"]) <= 10, source(cell)
        assert "def " not in source(cell), "notebooks tell the story, the library does the work"
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_figures_have_a_text_alternative(path):
    for cell in cells(path, "code"):
        if "figure" in noise.owed_outputs(source(cell)):
            assert cell["metadata"].get("mystnb", {}).get("image", {}).get("alt"), source(cell)


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_executed_notebooks_are_the_sources_with_outputs(path):
    job = JOBS[path]
    made = nbformat.read(path, as_version=4)
    assert execute.texts(made) == execute.texts(job.wanted()), f"{path} has drifted: run `make notebooks`"
    assert noise.problems(made) == []


def test_the_comparison_is_told_from_the_results_that_are_there():
    folder = ROOT / "book" / "results" / "compare" / "gemma-3-270m"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["of"] == results_digest(folder), "run `python -m study.compare`"
    copy = nbformat.read(ROOT / "book" / "compare" / "06_compare.ipynb", as_version=4)
    assert copy.metadata["results"] == summary["of"], "run `python book/execute.py 06_compare`"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_pages_that_are_notebooks_were_executed_as_they_stand(path):
    assert JOBS[path].state() == "current", f"{path} is not what was executed: run `make notebooks`"


def test_there_are_executed_notebooks():
    # 06 reads a finished comparison, whose summary is written last.
    finished = list((ROOT / "book" / "results" / "compare").glob("*/summary.json"))
    due = {p.stem for p in SOURCES} - (set() if finished else {"06_compare"})
    assert {p.stem for p in EXECUTED if p.parent.name in ("yo", "compare", "atlas")} == due


def test_misspelt_and_wrong_parameters_are_named():
    known = {"lang": "yo", "model": "m", "max_tokens": 10, "In": [], "sys": sys, "_i": ""}
    check_parameters(known, lang="yo", model="m", max_tokens=10)
    with pytest.raises(ValueError, match="Unknown parameter 'lnag'. Did you mean 'lang'?"):
        check_parameters({**known, "lnag": "is"}, lang="yo", model="m", max_tokens=10)
    with pytest.raises(ValueError, match="Unknown language 'no'"):
        check_parameters(known, lang="no", model="m", max_tokens=10)
    with pytest.raises(ValueError, match="Unknown method 'x'"):
        check_parameters({}, method="x")
    with pytest.raises(ValueError, match="max_tokens cannot be negative; got -1"):
        check_parameters(known, lang="yo", model="m", max_tokens=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"), [("lnag", "yo", "Unknown parameter 'lnag'"), ("lang", "xx", "Unknown language 'xx'")]
)
def test_papermill_stops_in_the_first_cell(tmp_path, name, value, message):
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "03_finetune.ipynb"), "out.ipynb"]
    done = subprocess.run([*command, "-r", name, value], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"], "nothing but the notebook is left behind"
