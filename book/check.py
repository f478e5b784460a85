"""Checks that the built book has every page, link, figure and output, and no errors or leftovers on its pages.

Run: python book/check.py [_build/html]   (the last step of `make book`)
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import noise
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
_HIDDEN = {"remove-output", "remove_output", "remove-cell", "remove_cell"}


@dataclass
class Page:
    """A page of the built book: its path relative to the book's folder, its source text, its elements and its anchors."""

    path: str
    text: str
    soup: BeautifulSoup = field(repr=False)
    anchors: set[str] = field(repr=False)


def read_pages(html: Path) -> dict[str, Page]:
    """Reads every page of a built book, by path."""
    pages = {}
    for path in sorted(html.rglob("*.html")):
        name = path.relative_to(html).as_posix()
        if name.startswith("_static/"):
            continue
        text = path.read_bytes().decode("utf-8")  # read_text would convert carriage returns to newlines
        soup = BeautifulSoup(text, "html.parser")
        anchors = {tag[key] for tag in soup.find_all(True) for key in ("id", "name") if tag.has_attr(key)}
        pages[name] = Page(name, text, soup, anchors)
    return pages


def contents(toc: Path) -> list[str]:
    """Returns the documents of a _toc.yml without file extensions, the root first."""

    def walk(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for entry in node:
                yield from walk(entry)

    return [re.sub(r"\.(md|ipynb|rst)$", "", name) for name in walk(yaml.safe_load(toc.read_text(encoding="utf-8")))]


def check_contents(pages: dict[str, Page], documents: list[str]) -> list[str]:
    """Checks that every document has a page, the index redirects to the first, and no page of an older build is left."""
    problems = [f"{name}.html: the page was not built" for name in documents if f"{name}.html" not in pages]
    if "index.html" not in pages:
        problems.append("index.html: the page was not built")
    elif f"{documents[0]}.html" not in pages["index.html"].text:
        problems.append(f"index.html: does not redirect to {documents[0]}.html")
    folders = {name.split("/")[0] for name in documents if "/" in name}
    stale = [p for p in pages if p.split("/")[0] in folders and p.removesuffix(".html") not in documents]
    return problems + [f"{path}: is not in the table of contents; run `make clean`" for path in stale]


def check_links(page: Page, pages: dict[str, Page], html: Path) -> list[str]:
    """Checks that every link, figure, script and style within the book has a target that exists and is not empty."""
    problems = []
    for tag in page.soup.find_all(True):
        for key in ("href", "src", "data", "poster"):
            address = tag.get(key)
            # `data` is an address only on <object>.
            if not address or (key == "data" and tag.name != "object"):
                continue
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            where = f"{page.path}: <{tag.name}> {address}"
            if parts.path.startswith("/"):
                problems.append(f"{where} is relative to the server's root, which need not be the book's folder")
                continue
            target = html / page.path if not parts.path else (html / page.path).parent / unquote(parts.path)
            target = target.resolve()
            if not target.is_file():
                problems.append(f"{where} does not exist")
            elif not target.stat().st_size:
                problems.append(f"{where} is an empty file")
            elif parts.fragment and target.suffix == ".html":
                other = pages.get(target.relative_to(html.resolve()).as_posix())
                if other and unquote(parts.fragment) not in other.anchors:
                    problems.append(f"{where} refers to an anchor that the page does not have")
    return problems


def check_figures(page: Page) -> list[str]:
    """Checks that every figure has a text alternative other than the file name, which the theme inserts."""
    problems = []
    for image in page.soup.select("article img"):
        alternative = (image.get("alt") or "").strip()
        if not alternative or alternative.split("/")[-1] == str(image.get("src")).split("/")[-1]:
            problems.append(f"{page.path}: the figure {image.get('src')} has no text alternative")
    return problems


def check_noise(page: Page) -> list[str]:
    """Checks that a page has no message of Sphinx, error, warning, widget stub or carriage return."""
    problems = [
        f"{page.path}: a message from Sphinx: {m.get_text(' ', strip=True)[:80]}"
        for m in page.soup.select(".system-message, .problematic")
    ]
    for output in page.soup.select(".cell_output"):
        problems += [f"{page.path}: an output shows {fault}" for fault in noise.faults(output.get_text())]
        if output.select(".traceback, .stderr, .error"):
            problems.append(f"{page.path}: an output shows an error or standard error")
        if output.select("[class*=jupyter-widget], script[type*=jupyter]"):
            problems.append(f"{page.path}: an output shows a widget stub")
    if "\r" in page.text.replace("\r\n", "\n") or "&#13;" in page.text:
        problems.append(f"{page.path}: the page contains carriage returns")
    return problems


def check_cells(page: Page, notebook: nbformat.NotebookNode) -> list[str]:
    """Checks that every code cell is on the page, with an output if and only if the notebook has one that is not hidden."""
    code = [c for c in notebook.cells if c.cell_type == "code" and not {"remove-cell", "remove_cell"} & _tags(c)]
    shown = page.soup.select("div.cell")
    if len(code) != len(shown):
        return [f"{page.path}: the page has {len(shown)} of {len(code)} code cells"]
    problems = []
    for cell, element in zip(code, shown, strict=True):
        output = element.select_one(".cell_output")
        has_output = output is not None and bool(
            output.get_text(strip=True) or output.select("img, svg, table, iframe")
        )
        expected = bool(cell.outputs) and not _HIDDEN & _tags(cell)
        if expected != has_output:
            first_line = (cell.source.strip() or "(empty)").splitlines()[0][:60]
            fault = "lacks its output" if expected else "shows an output that should be hidden"
            problems.append(f"{page.path}: the cell {first_line!r} {fault}")
    return problems


def check_digest(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    """Checks that the code of a page without a source in notebooks/ has not changed since its execution."""
    if notebook.metadata.get("executed_code") == noise.code_digest(notebook):
        return []
    return [f"{name}: its code has changed since its execution; run `make notebooks`"]


def _tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def check_addresses(page: Page, notebook: str | None, config: dict, tracked: set[str]) -> list[str]:
    """Checks that the Colab button opens the page's notebook, and that links to the repository refer to existing files.

    Args:
        page: The page.
        notebook: Path of the notebook that it shows, relative to the repository's root; None for a page of prose.
        config: Content of _config.yml.
        tracked: Paths of the files in git.
    """
    colab, repository = config["launch_buttons"]["colab_url"], config["repository"]
    owner_and_name = repository["url"].removeprefix("https://github.com/")
    prefixes = {
        f"{colab}/github/{owner_and_name}/blob/{repository['branch']}/": "Colab",
        f"{repository['url']}/blob/{repository['branch']}/": "the repository",
        f"{repository['url']}/tree/{repository['branch']}/": "the repository",
    }
    problems, opened = [], set()
    for link in page.soup.select("a[href]"):
        address = link["href"].split("#")[0].split("?")[0]
        start = next((start for start in prefixes if address.startswith(start)), None)
        if start is None:
            if address.startswith(colab):
                problems.append(f"{page.path}: {address} is not an address of this repository in Colab")
            continue
        path = unquote(address.removeprefix(start)).rstrip("/")
        if path not in tracked and not any(name.startswith(f"{path}/") for name in tracked):
            problems.append(f"{page.path}: a link to {prefixes[start]} refers to {path}, which is not in git")
        if prefixes[start] == "Colab" and "btn" in link.get("class", []):
            opened.add(path)
    if opened != ({notebook} if notebook else set()):
        problems.append(f"{page.path}: the Colab button opens {sorted(opened) or 'nothing'}, not {notebook}")
    return problems


def check_book(html: Path, root: Path = ROOT) -> tuple[list[str], dict[str, int]]:
    """Runs all checks.

    Args:
        html: Folder of the built book.
        root: Folder of the repository from which it was built.

    Returns:
        The problems, one sentence each, and the numbers of pages, notebooks and figures that were checked.
    """
    documents = contents(root / "book" / "_toc.yml")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    files = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    tracked = set(files.stdout.split("\0"))
    pages = read_pages(html)
    problems = check_contents(pages, documents)
    notebooks = 0
    for page in pages.values():
        problems += [*check_links(page, pages, html), *check_noise(page), *check_figures(page)]
        document = page.path.removesuffix(".html")
        if document in documents:
            source = root / f"{document}.ipynb"
            name = f"{document}.ipynb" if source.is_file() else None
            problems += check_addresses(page, name, config, tracked)
            if name:
                notebooks += 1
                notebook = nbformat.read(source, as_version=4)
                problems += [f"{name}: {x}" for x in noise.problems(notebook)]
                problems += check_cells(page, notebook)
                if not (root / "notebooks" / source.name).is_file():
                    problems += check_digest(name, notebook)
    figures = sum(len(page.soup.select("article img, article svg, article iframe")) for page in pages.values())
    return problems, {"pages": len(documents), "notebooks": notebooks, "figures": figures}


def main() -> None:
    """Prints the problems and what was checked; exits with 1 if there are problems."""
    html = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"
    started = time.monotonic()
    problems, numbers = check_book(html)
    for problem in problems:
        print(problem)
    checked = ", ".join(f"{number} {name}" for name, number in numbers.items())
    print(f"{checked} checked in {time.monotonic() - started:.1f} s: {len(problems)} problems.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
