"""Notebooks: one anatomy, short cells, no outputs in the sources, one address, parameters checked first."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssetools.notebook import check_parameters

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted(
    path for where in ("languages/*", "compare", "atlas") for path in (ROOT / "book").glob(f"{where}/*.ipynb")
)
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


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_executed_notebooks_are_the_sources_with_outputs(path):
    made = json.loads(path.read_text(encoding="utf-8"))
    origin = json.loads((ROOT / "notebooks" / path.name).read_text(encoding="utf-8"))

    def body(notebook):
        return [re.sub(r'^lang: str = "\w+"', "lang", source(c), flags=re.MULTILINE) for c in notebook["cells"]]

    assert body(made) == body(origin), f"{path} has drifted from its source: run `make notebooks` again"
    for cell in made["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            text = json.dumps(output)
            assert output.get("name") != "stderr"
            assert "\\r" not in json.dumps(output.get("text", ""))
            assert "widget-view" not in text
            assert str(Path.home()) not in text


def test_there_are_executed_notebooks():
    assert {p.stem for p in EXECUTED if p.parent.name in ("yo", "compare", "atlas")} == {p.stem for p in SOURCES}


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
