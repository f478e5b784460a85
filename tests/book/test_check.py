"""The check of the built book: a small book that passes, and one fault at a time that is reported."""

import subprocess

import check
import nbformat
import noise
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

COLAB = "https://colab.research.google.com/github/us/it/blob/main/"
CONFIG = """
repository: {url: https://github.com/us/it, branch: main}
launch_buttons: {colab_url: https://colab.research.google.com}
"""
INTRO = """<html><body><article><h1 id="top">Book</h1><a href="walk.html#run">walk</a> <a href="#top">up</a>
<a href="https://github.com/us/it/blob/main/book/walk.ipynb">source</a> <a href="https://elsewhere.org/gone">other</a>
<img src="../_images/a.svg" alt="A line."></article></body></html>"""
WALK = f"""<html><body><a class="btn" href="{COLAB}book/walk.ipynb">Colab</a><article><h2 id="run">Run</h2>
<div class="cell"><div class="cell_input">import x</div></div>
<div class="cell"><div class="cell_input">print(1)</div><div class="cell_output">1</div></div>
<div class="cell"><div class="cell_input">install()</div></div>
</article></body></html>"""


@pytest.fixture
def book(tmp_path):
    """Returns a folder with a repository and the built book of two pages that it holds."""
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "html" / "book").mkdir(parents=True)
    (tmp_path / "html" / "_images").mkdir()
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "book" / "_toc.yml").write_text(
        "root: book/intro\nparts: [{caption: Walk, chapters: [{file: book/walk}]}]"
    )
    printed = new_output("stream", name="stdout", text="1\n")
    hidden = {"execution_count": 3, "outputs": [printed], "metadata": {"tags": ["remove-output"]}}
    cells = [
        new_code_cell("import x", execution_count=1),
        new_code_cell("print(1)", execution_count=2, outputs=[printed]),
        new_code_cell("install()", **hidden),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["executed_code"] = noise.code_digest(notebook)
    nbformat.write(notebook, tmp_path / "book" / "walk.ipynb")
    (tmp_path / "html" / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=book/intro.html">')
    (tmp_path / "html" / "book" / "intro.html").write_text(INTRO)
    (tmp_path / "html" / "book" / "walk.html").write_text(WALK)
    (tmp_path / "html" / "_images" / "a.svg").write_text("<svg/>")
    for command in ("init -q", "add book"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    return tmp_path


def problems(book):
    return check.check_book(book / "html", book)[0]


def test_a_complete_book_passes(book):
    assert check.check_book(book / "html", book) == ([], {"pages": 2, "notebooks": 1, "figures": 1})


def test_missing_files_are_reported(book):
    for name, message in [
        ("_images/a.svg", "book/intro.html: <img> ../_images/a.svg does not exist"),
        ("index.html", "index.html: the page was not built"),
    ]:
        path = book / "html" / name
        text = path.read_text()
        path.unlink()
        assert problems(book) == [message]
        path.write_text(text)
    (book / "html" / "book" / "walk.html").unlink()
    assert "book/walk.html: the page was not built" in problems(book)


def test_a_wrong_redirect_and_a_stale_page_are_reported(book):
    (book / "html" / "index.html").write_text("")
    (book / "html" / "book" / "old.html").write_text("")
    assert problems(book) == [
        "index.html: does not redirect to book/intro.html",
        "book/old.html: is not in the table of contents; run `make clean`",
    ]


@pytest.mark.parametrize(
    ("page", "old", "new", "message"),
    [
        ("intro", "walk.html#run", "walks.html", "walks.html does not exist"),
        ("intro", "walk.html#run", "walk.html#runs", "walk.html#runs refers to an anchor that the page does not have"),
        ("intro", 'href="#top"', 'href="#bottom"', "#bottom refers to an anchor"),
        ("intro", "walk.html#run", "/book/walk.html", "is relative to the server's root"),
        ("intro", 'alt="A line."', "", "a.svg has no text alternative"),
        ("intro", 'alt="A line."', 'alt="../_images/a.svg"', "a.svg has no text alternative"),
        (
            "intro",
            "</h1>",
            '</h1><div class="system-message">Unknown role</div>',
            "a message from Sphinx: Unknown role",
        ),
        ("intro", "blob/main/book/walk.ipynb", "blob/main/book/gone.ipynb", "book/gone.ipynb, which is not in git"),
        ("walk", COLAB, COLAB.replace("us/it", "me/it"), "is not an address of this repository in Colab"),
        (
            "walk",
            "book/walk.ipynb",
            "notebooks/walk.ipynb",
            "the Colab button opens ['notebooks/walk.ipynb'], not book",
        ),
        ("walk", 'class="btn"', "", "the Colab button opens nothing, not book/walk.ipynb"),
        ("walk", '<div class="cell_output">1</div>', "", "the cell 'print(1)' lacks its output"),
        ("walk", ">1</div>", "> </div>", "the cell 'print(1)' lacks its output"),
        (
            "walk",
            "install()</div>",
            'install()</div><div class="cell_output">1</div>',
            "shows an output that should be hidden",
        ),
        (
            "walk",
            '<div class="cell"><div class="cell_input">import x</div></div>',
            "",
            "the page has 2 of 3 code cells",
        ),
        ("walk", ">1</div>", ">1<pre class='traceback'>KeyError</pre></div>", "an error or standard error"),
        ("walk", ">1</div>", ">Traceback (most recent call last)</div>", "an output shows a traceback"),
        ("walk", ">1</div>", ">x.py: UserWarning: no</div>", "an output shows a warning"),
        ("walk", ">1</div>", ">1<div class='jupyter-widgets'></div></div>", "an output shows a widget stub"),
        ("walk", ">1</div>", ">0\r1</div>", "contains carriage returns"),
    ],
)
def test_each_fault_of_a_page_is_reported(book, page, old, new, message):
    path = book / "html" / "book" / f"{page}.html"
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    found = problems(book)
    assert found
    assert any(message in problem for problem in found), found


def test_an_empty_figure_is_reported(book):
    (book / "html" / "_images" / "a.svg").write_text("")
    assert problems(book) == ["book/intro.html: <img> ../_images/a.svg is an empty file"]


def test_a_notebook_that_is_not_in_git_is_reported(book):
    subprocess.run(["git", "-C", str(book), "rm", "-q", "--cached", "book/walk.ipynb"], check=True)
    assert any("book/walk.ipynb, which is not in git" in problem for problem in problems(book))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell.update(execution_count=None), "was not executed"),
        (lambda cell: cell.update(outputs=[]), "lacks its output: text"),
        (lambda cell: cell.update(source="print(2)"), "its code has changed since its execution"),
    ],
)
def test_a_notebook_that_has_changed_since_its_execution_is_reported(book, change, message):
    path = book / "book" / "walk.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells[1])
    nbformat.write(notebook, path)
    assert any(message in problem for problem in problems(book))


def test_the_contents_list_every_document(tmp_path):
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "format: jb-book\nroot: book/a\nparts:\n- caption: file\n  chapters:\n  - file: book/b.md\n    title: B\n"
        "    sections:\n    - file: book/c.ipynb\n  - url: https://elsewhere.org\n"
    )
    assert check.contents(toc) == ["book/a", "book/b", "book/c"]
