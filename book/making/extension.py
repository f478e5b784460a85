"""Sphinx extension of the book: before pages are read, makes what they include, and brings MathJax along.

Every build makes the fragments, figures and numbers anew from `book/results/` into `book/_generated/` (not committed),
so a page cannot say another number than the result files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from making import claims, compared, contents, figures, fooling, mathjax, results, tables

GENERATED = results.BOOK / "_generated"
STATIC = Path(__file__).parent / "static"


def setup(app) -> dict:
    """Registers with Sphinx."""
    app.connect("config-inited", prepare)
    app.connect("builder-inited", bring_mathjax)
    app.connect("html-page-context", each_script_once)
    app.connect("html-page-context", entries_are_list_items)
    app.add_css_file("book.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app, config) -> None:
    """Writes the fragments and figures, and hands the numbers to MyST."""
    make(GENERATED)
    config.myst_substitutions = {**(config.myst_substitutions or {}), **results.numbers(), **contents.links()}
    config.html_static_path.append(str(STATIC))
    config.mathjax_path = "mathjax/tex-mml-chtml.js"


def make(folder: Path) -> None:
    """Writes every fragment and figure that is new or has changed, so that unchanged pages are not read again."""
    folder.mkdir(exist_ok=True)
    sources = (tables, compared, fooling, claims)
    written = {f"{name}.md": text for source in sources for name, text in source.fragments().items()}
    written |= figures.draw_all()
    for name, text in written.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        if path.name not in written:
            path.unlink()


def each_script_once(app, pagename, templatename, context, doctree) -> None:
    """Keeps each script of a page once: two extensions add theirs twice, and the browser complains of the second."""
    once = {}
    for file in context.get("script_files", []):
        # One of the two has no file name, the other an empty one: Sphinx does not see that they are the same.
        once.setdefault((str(file.filename or ""), *sorted(map(str, file.attributes.items()))), file)
    context["script_files"] = list(once.values())


def entries_are_list_items(app, pagename, templatename, context, doctree) -> None:
    """Gives the entries of the bibliography the role that a list needs: docutils writes one that is deprecated."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def bring_mathjax(app) -> None:
    """Copies MathJax into the built book, so that formulas need no network."""
    target = Path(app.outdir) / "_static" / "mathjax"
    if app.builder.format == "html" and not target.is_dir():
        shutil.copytree(mathjax.folder(), target)
