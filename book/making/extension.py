"""Sphinx extension of the book: generates what the pages include, and adds MathJax to the built book.

Every build generates the fragments, figures and numbers from `book/results/` in `book/_generated/` (not committed), so the
numbers of a page are always those of the result files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bs4 import BeautifulSoup

from making import (
    all_languages,
    claims,
    compared,
    contents,
    figures,
    fooling,
    guide,
    harm,
    language_pages,
    mathjax,
    plane,
    results,
    scoreboard,
    tables,
)

SCRIPTS = {"book/lape": "lape.js", "book/all_languages": "languages.js", "book/which_method": "plane.js"}
"""Scripts of interactive pages, in the folder `static`, by page."""
GENERATED = results.BOOK / "_generated"
STATIC = Path(__file__).parent / "static"


def setup(app) -> dict:
    """Registers with Sphinx."""
    app.connect("config-inited", prepare)
    app.connect("builder-inited", copy_mathjax)
    app.connect("html-page-context", add_scripts)
    app.connect("html-page-context", remove_duplicate_scripts)
    app.connect("html-page-context", set_bibliography_roles)
    app.connect("html-page-context", name_toggles, priority=900)  # after the theme has made its functions
    app.add_css_file("book.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app, config) -> None:
    """Writes the fragments and figures, and passes the numbers to MyST."""
    make(GENERATED)
    config.myst_substitutions = {**(config.myst_substitutions or {}), **results.substitutions(), **contents.links()}
    config.html_static_path.append(str(STATIC))
    config.mathjax_path = "mathjax/tex-mml-chtml.js"


def make(folder: Path) -> None:
    """Writes the fragments, figures and pages of languages; unchanged files are left, so that Sphinx does not read them again.

    The pages of the languages are written first, because lists of languages link to those that exist.
    """
    folder.mkdir(exist_ok=True)
    _write(language_pages.PAGES, {f"{code}.md": text for code, text in language_pages.pages().items()}, "*.md")
    sources = (tables, compared, harm, fooling, claims, guide, plane, scoreboard, all_languages)
    written = {f"{name}.md": text for source in sources for name, text in source.fragments().items()}
    written |= figures.draw_all()
    _write(folder, written | language_pages.pictures())


def _write(folder: Path, files: dict[str, str | bytes], pattern: str = "*") -> None:
    """Writes the files that are new or have changed, and deletes other files that match the pattern."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)
    for path in folder.glob(pattern):
        if path.name not in files:
            path.unlink()


def remove_duplicate_scripts(app, pagename, templatename, context, doctree) -> None:
    """Removes duplicate scripts from a page: two extensions add theirs twice, and the browser reports an error."""
    unique = {}
    for file in context.get("script_files", []):
        # One of the two has no file name and the other an empty one, so Sphinx does not recognise them as equal.
        unique.setdefault((str(file.filename or ""), *sorted(map(str, file.attributes.items()))), file)
    context["script_files"] = list(unique.values())


def set_bibliography_roles(app, pagename, templatename, context, doctree) -> None:
    """Replaces the deprecated role that docutils writes for entries of the bibliography by the one that a list needs."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def name_toggles(app, pagename, templatename, context, doctree) -> None:
    """Names the toggles of the sidebar for screen readers: the theme leaves them without words."""
    generate = context.get("generate_toctree_html")
    if generate is None:
        return

    def named(*arguments, **options) -> str:
        tree = BeautifulSoup(str(generate(*arguments, **options)), "html.parser")
        for toggle in tree.select("li > details > summary"):
            toggle["aria-label"] = f"Pages below {toggle.find_parent('li').a.get_text(strip=True)}"
        return str(tree)

    context["generate_toctree_html"] = named


def add_scripts(app, pagename, templatename, context, doctree) -> None:
    """Adds the script of an interactive page to this page only."""
    if pagename in SCRIPTS:
        app.add_js_file(SCRIPTS[pagename])


def copy_mathjax(app) -> None:
    """Copies MathJax into the built book, so that formulas are displayed without a network."""
    target = Path(app.outdir) / "_static" / "mathjax"
    if app.builder.format == "html" and not target.is_dir():
        shutil.copytree(mathjax.folder(), target)
