"""Checks the built book: every page, link, figure and output is there, and nothing that a reader should not see.

Run: python book/check.py [_build/html]   (`make book` ends with it)
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
    """A page of the built book: its path below the book's folder, its text as written, its elements, its anchors."""

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
        text = path.read_bytes().decode("utf-8")  # read_text would turn carriage returns into newlines
        soup = BeautifulSoup(text, "html.parser")
        anchors = {tag[key] for tag in soup.find_all(True) for key in ("id", "name") if tag.has_attr(key)}
        pages[name] = Page(name, text, soup, anchors)
    return pages


def contents(toc: Path) -> list[str]:
    """Returns the documents that a _toc.yml names, without endings, the root first."""

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
    """Every document has its page, the front door leads to the first, and no page of an older book is left."""
    found = [f"{name}.html: the page was not built" for name in documents if f"{name}.html" not in pages]
    if "index.html" not in pages:
        found.append("index.html: there is none")
    elif f"{documents[0]}.html" not in pages["index.html"].text:
        found.append(f"index.html: does not lead to {documents[0]}.html")
    folders = {name.split("/")[0] for name in documents if "/" in name}
    stale = [p for p in pages if p.split("/")[0] in folders and p.removesuffix(".html") not in documents]
    return found + [f"{path}: is not in the contents any more; run `make clean`" for path in stale]


def check_links(page: Page, pages: dict[str, Page], html: Path) -> list[str]:
    """Every link, anchor, figure, script and style of the book itself leads somewhere."""
    found = []
    for tag in page.soup.find_all(True):
        for key in ("href", "src", "data", "poster"):
            address = tag.get(key)
            # `data` is an address on <object> alone; on a page it may be anything.
            if not address or (key == "data" and tag.name != "object"):
                continue
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            where = f"{page.path}: <{tag.name}> {address}"
            if parts.path.startswith("/"):
                found.append(f"{where} starts at the server's root, where the book may not lie")
                continue
            target = html / page.path if not parts.path else (html / page.path).parent / unquote(parts.path)
            target = target.resolve()
            if not target.is_file():
                found.append(f"{where} leads nowhere")
            elif not target.stat().st_size:
                found.append(f"{where} is an empty file")
            elif parts.fragment and target.suffix == ".html":
                other = pages.get(target.relative_to(html.resolve()).as_posix())
                if other and unquote(parts.fragment) not in other.anchors:
                    found.append(f"{where} names an anchor that the page does not have")
    return found


def check_figures(page: Page) -> list[str]:
    """Every figure has a text alternative that somebody wrote: the theme fills in the file's name."""
    found = []
    for image in page.soup.select("article img"):
        alternative = (image.get("alt") or "").strip()
        if not alternative or alternative.split("/")[-1] == str(image.get("src")).split("/")[-1]:
            found.append(f"{page.path}: the figure {image.get('src')} has no text alternative")
    return found


def check_noise(page: Page) -> list[str]:
    """No page holds what Sphinx could not read, an error, a warning, a widget stub or a trail of carriage returns."""
    found = [
        f"{page.path}: a message of Sphinx: {m.get_text(' ', strip=True)[:80]}"
        for m in page.soup.select(".system-message, .problematic")
    ]
    for output in page.soup.select(".cell_output"):
        found += [f"{page.path}: an output shows {fault}" for fault in noise.faults(output.get_text())]
        if output.select(".traceback, .stderr, .error"):
            found.append(f"{page.path}: an output shows an error or standard error")
        if output.select("[class*=jupyter-widget], script[type*=jupyter]"):
            found.append(f"{page.path}: an output shows a widget stub")
    if "\r" in page.text.replace("\r\n", "\n") or "&#13;" in page.text:
        found.append(f"{page.path}: the page holds carriage returns")
    return found


def check_cells(page: Page, notebook: nbformat.NotebookNode) -> list[str]:
    """Every code cell is on the page, with output exactly where the executed notebook has some that is not hidden."""
    code = [c for c in notebook.cells if c.cell_type == "code" and not {"remove-cell", "remove_cell"} & _tags(c)]
    shown = page.soup.select("div.cell")
    if len(code) != len(shown):
        return [f"{page.path}: {len(shown)} code cells of {len(code)} are on the page"]
    found = []
    for cell, element in zip(code, shown, strict=True):
        output = element.select_one(".cell_output")
        there = output is not None and bool(output.get_text(strip=True) or output.select("img, svg, table, iframe"))
        due = bool(cell.outputs) and not _HIDDEN & _tags(cell)
        if due != there:
            first = (cell.source.strip() or "(empty)").splitlines()[0][:60]
            found.append(f"{page.path}: the cell {first!r} {'lacks its output' if due else 'shows what it should not'}")
    return found


def check_digest(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    """A page that is its own source was executed as it stands; copies of notebooks/ are compared by the tests."""
    if notebook.metadata.get("executed_code") == noise.code_digest(notebook):
        return []
    return [f"{name}: its code is not what was executed; run `make notebooks`"]


def _tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def check_addresses(page: Page, notebook: str | None, config: dict, tracked: set[str]) -> list[str]:
    """The Colab button opens this very notebook, and no link to the repository names a file that it does not have.

    Args:
        page: The page.
        notebook: Path of the notebook that it shows, below the repository's root; None for a page of prose.
        config: _config.yml.
        tracked: Paths of the files in git.
    """
    colab, repository = config["launch_buttons"]["colab_url"], config["repository"]
    owner_and_name = repository["url"].removeprefix("https://github.com/")
    below = {
        f"{colab}/github/{owner_and_name}/blob/{repository['branch']}/": "Colab",
        f"{repository['url']}/blob/{repository['branch']}/": "the repository",
        f"{repository['url']}/tree/{repository['branch']}/": "the repository",
    }
    found, opened = [], set()
    for link in page.soup.select("a[href]"):
        address = link["href"].split("#")[0].split("?")[0]
        start = next((start for start in below if address.startswith(start)), None)
        if start is None:
            if address.startswith(colab):
                found.append(f"{page.path}: {address} is not an address of this repository in Colab")
            continue
        path = unquote(address.removeprefix(start)).rstrip("/")
        if path not in tracked and not any(name.startswith(f"{path}/") for name in tracked):
            found.append(f"{page.path}: a link to {below[start]} names {path}, which is not in git")
        if below[start] == "Colab" and "btn" in link.get("class", []):
            opened.add(path)
    if opened != ({notebook} if notebook else set()):
        found.append(f"{page.path}: the Colab button opens {sorted(opened) or 'nothing'}, not {notebook}")
    return found


def check_book(html: Path, root: Path = ROOT) -> tuple[list[str], dict[str, int]]:
    """Runs every check.

    Args:
        html: Folder of the built book.
        root: Folder of the repository that it was built from.

    Returns:
        What is wrong, one sentence each, and the numbers of pages, notebooks and figures that were looked at.
    """
    documents = contents(root / "book" / "_toc.yml")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    pages = read_pages(html)
    found = check_contents(pages, documents)
    notebooks = 0
    for page in pages.values():
        found += [*check_links(page, pages, html), *check_noise(page), *check_figures(page)]
        document = page.path.removesuffix(".html")
        if document in documents:
            source = root / f"{document}.ipynb"
            name = f"{document}.ipynb" if source.is_file() else None
            found += check_addresses(page, name, config, set(listed.stdout.split("\0")))
            if name:
                notebooks += 1
                notebook = nbformat.read(source, as_version=4)
                found += [f"{name}: {problem}" for problem in noise.problems(notebook)]
                found += check_cells(page, notebook)
                if not (root / "notebooks" / source.name).is_file():
                    found += check_digest(name, notebook)
    figures = sum(len(page.soup.select("article img, article svg, article iframe")) for page in pages.values())
    return found, {"pages": len(documents), "notebooks": notebooks, "figures": figures}


def main() -> None:
    """Prints what is wrong and ends with 1, or prints what was checked."""
    html = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"
    started = time.monotonic()
    found, numbers = check_book(html)
    for problem in found:
        print(problem)
    checked = ", ".join(f"{number} {name}" for name, number in numbers.items())
    print(f"{checked} checked in {time.monotonic() - started:.1f} s: {len(found)} problems.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
