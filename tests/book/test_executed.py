"""Executed notebooks: run-specific details are removed, faults are reported, and stale copies are found."""

import re

import execute
import nbformat
import noise
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = execute.ROOT


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def cell(source, *outputs, count=1, **metadata):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def figure(**more):
    return new_output(
        "display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 8x4 with 1 Axes>", **more}
    )


def test_run_details_are_removed():
    noisy = new_notebook(
        cells=[
            cell("lang = 'yo'", tags=["parameters"], papermill={"duration": 3.1}),
            cell("lang = 'is'", tags=["injected-parameters"], count=2),
            cell(
                "run()",
                printed(" 10%|#   | 1/10\r 20%|##  | 2/10\rstep 1 of 2   812 tokens/s\n"),
                printed("Warning: slow", name="stderr"),
                printed("read sib200:/data/sib, wrote scratch/runs/adapter, 3.2 minutes, 2.9 GiB\n"),
                figure(),
                new_output(
                    "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/html": "<b>1</b>"}
                ),
                new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}),
                new_output("execute_result", data={"text/html": '<i id="T_0a1f2_row0">'}, execution_count=7),
                count=7,
                collapsed=True,
                mystnb={"image": {"alt": "A line."}},
            ),
        ],
        metadata={
            "papermill": {"end_time": "now"},
            "widgets": {},
            "language_info": {"name": "python", "version": "3.11.7"},
        },
    )
    quiet = noise.without_noise(noisy, "scratch/runs")
    assert set(quiet.metadata) == {"language_info"}
    assert [c["id"] for c in quiet.cells] == ["0", "1"]
    assert [c.execution_count for c in quiet.cells] == [1, 2]
    assert [dict(c.metadata) for c in quiet.cells] == [
        {"tags": ["parameters"]},
        {"mystnb": {"image": {"alt": "A line."}}},
    ]
    text, picture, table, value = quiet.cells[1].outputs
    assert text.text == "step 1 of 2\nread sib200, wrote runs/adapter\n"
    assert list(picture.data) == ["image/png"]
    assert list(table.data) == ["text/html"]
    assert value.data["text/html"] == '<i id="T_table_row0">'
    assert value.execution_count == 2
    nbformat.validate(quiet)
    assert noise.without_noise(nbformat.from_dict(quiet), "scratch/runs") == quiet, "twice changes nothing"


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (cell("import x", count=None), "'import x'.* was not executed"),
        (cell("print(1)"), "lacks its output: text"),
        (cell("_ = plots.overlap(neurons)", printed("1")), "lacks its output: figure"),
        (cell("table"), "lacks its output: value"),
        (cell("for x in y:\n    with z:\n        print(x)"), "lacks its output: text"),
        (cell("f()", new_output("error", ename="KeyError", evalue="'yo'")), "ended in KeyError"),
        (cell("f()", printed("x", name="stderr")), "standard error"),
        (cell("f()", printed("a.py:3: FutureWarning: old")), "a warning"),
        (cell("f()", printed("Traceback (most recent call last):")), "a traceback"),
        (cell("f()", printed("1\r2\n")), "a carriage return"),
        (cell("f()", printed("\x1b[31mred")), "colour code"),
        (cell("f()", printed(" 40%|████      | 4/10 [00:01, 4.00it/s]")), "a progress bar"),
        (cell("f()", printed("HBox(children=(FloatProgress(value=0.0)")), "a widget stub"),
        (
            cell("f()", new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})),
            "a widget stub",
        ),
        (cell("f()", figure()), "text representation of a figure"),
        (cell("f()", printed("<function f at 0x7f01deadbeef>")), "memory address"),
        (cell("f()", new_output("execute_result", data={"text/plain": "'/home/me/runs'"})), "path of one machine"),
    ],
)
def test_each_fault_is_reported(broken, named):
    good = cell("x = 1\nx.update()")
    assert noise.problems(new_notebook(cells=[good, new_markdown_cell("text")])) == []
    (problem,) = noise.problems(new_notebook(cells=[broken]))
    assert re.search(named, problem), problem


def test_cells_executed_out_of_order_are_reported():
    found = noise.problems(new_notebook(cells=[cell("a = 1", count=2), cell("b = 2", count=1)]))
    assert found == ["cell 1 ('b = 2') ran out of order: 1 after 2"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import x", set()),
        ("if quiet:\n    print(1)", set()),
        ("def f():\n    print(1)", set()),
        ("check_parameters(globals())", set()),
        ("table;", set()),
        ('if "google.colab" in sys.modules:\n    %pip install -q x', set()),
        ("", set()),
        ("_ = plots.genres(found)\nprint(1)\nfound[1]", {"figure", "text", "value"}),
    ],
)
def test_expected_outputs_follow_from_the_code(source, expected):
    assert noise.expected_outputs(source) == expected


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A book of its own: three notebooks and a page, two languages, one of them executed."""
    for name, value in {"ROOT": tmp_path, "BOOK": tmp_path / "book", "SOURCES": tmp_path / "notebooks"}.items():
        monkeypatch.setattr(execute, name, value)
    monkeypatch.setattr(execute, "TARGET_LANGUAGES", ("yo", "is"))
    parameters = {"source": 'lang: str = "yo"  # code\nruns: str = "runs"', "tags": ["parameters"]}
    for stem in ("01_profile", "03_finetune", "04_evaluate"):
        code = [cell(parameters["source"], count=None, tags=["parameters"]), cell("print(lang)", count=None)]
        notebook = new_notebook(cells=[new_markdown_cell(f"# {stem}"), *code])
        execute.write(notebook, tmp_path / "notebooks" / f"{stem}.ipynb")
    execute.write(new_notebook(cells=[cell("print(1)", count=None)]), tmp_path / "book" / "page.ipynb")
    executed = []

    def run(notebook, parameters):
        executed.append(notebook)
        for number, one in enumerate(c for c in notebook.cells if c.cell_type == "code"):
            one.execution_count = number + 1
            one.outputs = [printed("shown\n")] if "print" in one.source else []
        return noise.without_noise(notebook)

    def keep(lang, runs):
        (tmp_path / "book" / "results").mkdir(exist_ok=True)
        (tmp_path / "book" / "results" / f"{lang}.json").write_text("{}")
        made = tmp_path / "runs" / "gemma-3-270m" / lang / "specific-seed0" / "metrics.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("{}")
        (tmp_path / "runs" / "gemma-3-270m" / "profile.safetensors").write_text("")

    monkeypatch.setattr(execute, "executed", run)
    monkeypatch.setattr(execute, "save_metrics", keep)
    return tmp_path, executed


def make(project, *names):
    """Runs the command; returns the copies it executed, in order."""
    root, executed = project
    executed.clear()
    every = execute.jobs()
    states = execute.plan(every, set(names), str(root / "runs"))
    for job, state in states.items():
        if state == "stale":
            job.run(str(root / "runs"), "sib200")
        elif state == "prose":
            job.refresh()
    return [j.output.relative_to(root / "book").as_posix() for j, s in states.items() if s == "stale"], states


ALL = ["languages/yo/01_profile.ipynb", "languages/yo/03_finetune.ipynb", "languages/yo/04_evaluate.ipynb"]
ALL += ["languages/is/03_finetune.ipynb", "languages/is/04_evaluate.ipynb", "page.ipynb"]


def test_every_notebook_is_executed_once(project):
    root, _ = project
    assert make(project)[0] == ALL
    copy = nbformat.read(root / "book" / "languages" / "is" / "03_finetune.ipynb", as_version=4)
    assert copy.cells[1].source.startswith('lang: str = "is"  # code'), "Colab opens the copy with its own language"
    assert make(project)[0] == []


def test_an_interrupted_execution_is_resumed(project, monkeypatch):
    root, _ = project
    run = execute.executed

    def stopped(notebook, parameters):
        if parameters["lang"] == "is" and "04" in notebook.cells[0].source:
            raise KeyboardInterrupt
        return run(notebook, parameters)

    monkeypatch.setattr(execute, "executed", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(project)
    monkeypatch.setattr(execute, "executed", run)
    assert make(project)[0] == ALL[4:]


def test_differences_from_the_source_are_found(project):
    root, executed = project
    make(project)
    source = root / "notebooks" / "04_evaluate.ipynb"
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[0].source = "# Other words"
    execute.write(notebook, source)
    made, states = make(project)
    assert (made, executed) == ([], []), "prose alone executes nothing"
    assert list(states.values()).count("prose") == 2
    copy = nbformat.read(root / "book" / "languages" / "is" / "04_evaluate.ipynb", as_version=4)
    assert (copy.cells[0].source, copy.cells[2].outputs[0].text) == ("# Other words", "shown\n")

    notebook.cells[2].source = "print(lang, 2)"
    execute.write(notebook, source)
    assert make(project)[0] == [ALL[2], ALL[4]], "changed code is executed in every language"

    copy = root / "book" / "languages" / "is" / "03_finetune.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[2].outputs = []
    execute.write(notebook, copy)
    assert make(project)[0] == ALL[3:5], "a lost output is made again, and what shows the same run with it"

    page = root / "book" / "page.ipynb"
    notebook = nbformat.read(page, as_version=4)
    notebook.cells[0].source = "print(2)"
    execute.write(notebook, page)
    assert make(project)[0] == ["page.ipynb"], "a page is executed when its code is not what was executed"


def test_new_prose_keeps_the_digest_of_the_results(project, monkeypatch):
    root, _ = project
    monkeypatch.setattr(execute, "comparison_digest", lambda: "digest")
    source, copy = (root / folder / "06_compare.ipynb" for folder in ("notebooks", "book/compare"))
    notebook = new_notebook(cells=[new_markdown_cell("# Words"), cell("print(1)", count=None)])
    execute.write(notebook, source)
    make(project)
    notebook.cells[0].source = "# Other words"
    execute.write(notebook, source)
    assert make(project)[0] == []
    assert nbformat.read(copy, as_version=4).metadata["results"] == "digest"
    assert make(project)[1][next(job for job in execute.jobs() if job.output == copy)] == "current"


def test_metrics_on_other_genres_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "BOOK", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "yo.json").write_text('{"summary": {"articles": 1, "sentences": 1}}')
    run = tmp_path / "runs" / "gemma-3-270m" / "is" / "specific-seed0"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text('{"summary": {"articles": 1}}')
    with pytest.raises(ValueError, match="is measured on articles, and the other languages are not"):
        execute.save_metrics("is", str(tmp_path / "runs"))
    assert not (tmp_path / "results" / "is.json").exists()


def test_named_notebooks_are_executed_again_with_their_dependencies(project):
    root, _ = project
    make(project)
    assert make(project, "is")[0] == ALL[3:5]
    (root / "runs" / "gemma-3-270m" / "profile.safetensors").unlink()
    assert make(project, "is")[0] == [ALL[0], *ALL[3:5]]


def test_a_notebook_with_problems_is_not_saved(project, monkeypatch):
    root, _ = project
    monkeypatch.setattr(execute, "executed", lambda notebook, parameters: notebook)
    with pytest.raises(
        ValueError, match=r"01_profile.ipynb was executed, but cannot be published: .* was not executed"
    ):
        make(project)
    assert not (root / "book" / "languages").exists()


NOTEBOOKS = [*sorted(execute.SOURCES.glob("*.ipynb")), *sorted(execute.BOOK.glob("*.ipynb"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_that_a_page_shows_fits_its_width(path):
    notebook = nbformat.read(path, as_version=4)
    shown = [c for c in notebook.cells if c.cell_type == "code" and "remove-cell" not in c.metadata.get("tags", [])]
    assert [line for c in shown for line in c.source.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_two_exercises_with_folded_solutions_and_a_take_away(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    exercises = text.split("## Exercises")[1]
    assert [len(re.findall(mark, exercises, re.MULTILINE)) for mark in (r"^\*\*\d\. ", "<details>", "</details>")] == [
        2,
        2,
        2,
    ]
    assert "**Take-away**:" in exercises


def test_links_of_a_source_lead_to_pages_of_the_book_in_its_copy():
    for job in execute.jobs():
        if job.source != job.output:
            text = "\n".join(c.source for c in job.wanted().cells if c.cell_type == "markdown")
            for link in re.findall(r"\]\(([^):]+)\)", text):
                assert (job.output.parent / link).is_file(), f"{job.output}: {link}"
