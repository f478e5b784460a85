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
from making import results

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


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_anatomy(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    for part in ("**What you will learn**", "**Cost**", "## What we have seen", "**Next**"):
        assert part in text, f"{path.name} lacks {part}"
    code = cells(path, "code")
    assert "google.colab" in source(code[0])
    assert f"git+{ADDRESS}" in source(code[0]), "the install cell must name the address in _config.yml"
    assert "parameters" in code[1]["metadata"]["tags"]
    assert source(code[2]) == "from ssetools.notebook import check_parameters\n\ncheck_parameters()"
    for node in ast.parse(source(code[1])).body:
        assert isinstance(node, ast.AnnAssign), "a parameter has a type, which the check reads"
        assert node.value is not None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_cells_are_short_and_without_output(path):
    for cell in cells(path, "code"):
        if "parameters" not in cell["metadata"].get("tags", []):
            assert len(cell["source"]) <= 10, source(cell)
        assert "def " not in source(cell), "notebooks tell the story, the library does the work"
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_figures_have_a_text_alternative(path):
    for cell in cells(path, "code"):
        if "figure" in noise.expected_outputs(source(cell)):
            assert cell["metadata"].get("mystnb", {}).get("image", {}).get("alt"), source(cell)


def of_earlier_default(job):
    """Whether a copy shows a run of LAPE's neurons, and awaits execution; the pages say so."""
    return job.lang and results.metrics_by_language()[job.lang]["adapter"].get("selection") != "specific"


def without_language(made):
    return [(kind, re.sub(r'(?m)^lang: str = "\w+"', "", text), facts) for kind, text, facts in execute.texts(made)]


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_executed_notebooks_are_the_sources_with_outputs(path):
    job = JOBS[path]
    made = nbformat.read(path, as_version=4)
    if of_earlier_default(job):
        assert results.language_name(job.lang) in results.trained_how().split("earlier default")[1]
        others = [
            nbformat.read(p, as_version=4) for p, x in JOBS.items() if p.stem == path.stem and of_earlier_default(x)
        ]
        assert all(without_language(made) == without_language(other) for other in others), f"{path} was edited alone"
        assert noise.problems(made) == []
        return
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


def run_first_cells(stem, injected=""):
    """Runs a notebook's parameters, what papermill injects after them, and the check, as IPython does."""
    parameters, check = (source(cell) for cell in cells(ROOT / "notebooks" / f"{stem}.ipynb", "code")[1:3])
    namespace = {"In": ["", "%%broken magic"]}
    for cell in (parameters, injected, check):
        namespace["In"].append(cell)
        exec(cell, namespace)
    return namespace


@pytest.mark.parametrize("stem", [path.stem for path in SOURCES])
def test_the_defaults_of_every_notebook_pass_the_check(stem):
    run_first_cells(stem)


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ('lnag = "is"', "Unknown parameter 'lnag'. Did you mean 'lang'? This notebook has: lang, model, "),
        ('lang = "qq"', "Unknown language 'qq'"),
        (
            "lang = False",
            """lang must be a string, such as its default 'yo'; got False. YAML reads no and off as False""",
        ),
        ('lang = float("nan")', "got nan. papermill's -p reads nan and digits as numbers: use -r lang nan"),
        ('method = "x"', "Unknown method 'x'"),
        ('selection = "x"', "Unknown selection 'x': use one of specific, lape, random."),
        ('scale = "half"', "scale is a number from 0 (the base) on"),
        ("scale = -0.5", "scale must be a number from 0 on; got -0.5"),
        ("max_tokens = -1", "max_tokens must be a number from 0 on; got -1"),
        ("max_tokens = 2.5", "max_tokens must be a whole number, such as its default 30720; got 2.5"),
        ('top_rate = "5%"', "top_rate must be a number, such as its default 0.05; got '5%'"),
        ('top_rate = float("nan")', "top_rate must be a number from 0 on; got nan"),
        ("seed = True", "seed must be a whole number, such as its default 0; got True"),
        ('load_in_8bit = "no"', "load_in_8bit must be True or False, such as its default True; got 'no'"),
        ('learning_rate = "high"', "learning_rate must be a number or None, such as its default None; got 'high'"),
    ],
)
def test_wrong_parameters_are_named_with_valid_values(injected, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_first_cells("03_finetune", injected)


def test_right_parameters_pass_the_check_and_it_can_be_repeated():
    namespace = run_first_cells(
        "03_finetune", 'lang, seed = "is", 3\nlearning_rate = 1e-4\ntop_rate = 1\nscale = "auto"'
    )
    for cell in ("neurons = 5", "check_parameters()"):
        namespace["In"].append(cell)
        exec(cell, namespace)
    with pytest.raises(ValueError, match="Unknown language 'qq'"):
        run_first_cells("02_select", 'languages = "yo qq"')
    with pytest.raises(ValueError, match="'yor_Latn' is Yoruba, whose code here is 'yo'"):
        run_first_cells("03_finetune", 'lang = "yor_Latn"')
    with pytest.raises(ValueError, match="no cell of parameters above"):
        check_parameters()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "name", "value", "message"),
    [
        ("-r", "lnag", "yo", "Unknown parameter 'lnag'"),
        ("-r", "lang", "xx", "Unknown language 'xx'"),
        ("-p", "lang", "nan", "lang must be a string, such as its default 'yo'; got nan"),
        ("-y", "lang: no", "", "lang must be a string, such as its default 'yo'; got False"),
    ],
)
def test_papermill_stops_in_the_first_cell(tmp_path, option, name, value, message):
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "03_finetune.ipynb"), "out.ipynb"]
    done = subprocess.run(
        [*command, option, name, *([value] if value else [])], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"], "nothing but the notebook is left behind"
