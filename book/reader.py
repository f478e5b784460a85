"""Opens every page of the built book in a browser, as a reader would, and names what a reader would stumble over.

Run: python book/reader.py [pages ...]   (`make check-book` does)

Each page is opened as wide as a desktop and as a phone, in the light and the dark theme. Screenshots and report.json lie
in _build/reader/. What a page asks of other hosts is refused: a reader may be offline. axe-core comes from npm.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import check
from playwright.async_api import Browser, Page, Route, async_playwright
from playwright.async_api import TimeoutError as Waited

from ssetools.files import cached_folder, write_json
from ssetools.text.embedded import npm_package

HTML = check.ROOT / "_build" / "html"
SCREENSHOTS = check.ROOT / "_build" / "reader"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
AXE_VERSION = "4.14.1"
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
TALLEST = {"desktop": 8_000, "phone": 10_000}  # pixels
TALL = ("book/compare/06_compare.html", "book/atlas/07_atlas.html", "book/api.html")  # may be taller
AT_ONCE = 2
WAIT = 10_000  # milliseconds for what the search finds
DEBIAN = ("chromium", "fonts-noto-core")
# What axe-core is asked: contrast, text alternatives, and all else that WCAG 2 requires at levels A and AA. The rule left
# out wants a button's spoken name to repeat what it shows; the theme's say "Search" where "Search Ctrl+K" stands.
AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "rules": {"label-content-name-mismatch": {"enabled": False}},
    "resultTypes": ["violations"],
}

# Looked for in the page, with all that is folded open. What is wider than the page may scroll in a box of its own;
# elsewhere it is cut off.
LOOK = """() => {
  const wide = document.documentElement.clientWidth, faults = [], article = document.querySelector("article");
  const folded = [...document.querySelectorAll("article details:not([open])")];
  for (const part of folded) part.open = true;
  const scrolls = e => e && e !== article && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const out = [...document.querySelectorAll("article *:not(mjx-assistive-mml, mjx-assistive-mml *)")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 1 && box.right > wide + 1 && !scrolls(e.parentElement);
  });
  if (document.documentElement.scrollWidth > wide + 1)
    faults.push(`the page is ${document.documentElement.scrollWidth} pixels wide, its window ${wide}`);
  for (const e of out.slice(0, 3))
    faults.push(`reaches over the edge: ${e.outerHTML.slice(0, 100)}`);
  // On a phone a table may scroll. On a desktop its last column would be out of sight, and nobody would miss it.
  for (const table of wide < 1000 ? [] : document.querySelectorAll("article table")) {
    const box = table.parentElement;
    if (!table.closest(".cell_output") && box.scrollWidth > box.clientWidth + 1)
      faults.push(`a table ends out of sight: ${table.rows[0].innerText.replace(/\\s+/g, " ")}`);
  }
  for (const code of wide < 1000 ? [] : document.querySelectorAll("article pre"))
    if (code.scrollWidth > code.clientWidth + 1)
      faults.push(`a line of code is cut off: ${code.innerText.slice(0, 60).replace(/\\s+/g, " ")}`);
  // On a phone the first column names the row, the second decides: both in sight at first, the first one always.
  for (const table of wide < 1000 ? document.querySelectorAll("article table") : []) {
    let box = table.parentElement;
    while (box !== article && box.scrollWidth <= box.clientWidth + 1) box = box.parentElement;
    const cells = [...table.rows].map(row => [...row.cells]).find(row => row.length > 2 && row.every(cell => cell.colSpan === 1));
    if (box === article || !cells) continue;
    const edge = box.getBoundingClientRect();
    box.scrollLeft = 0;
    if (cells[1].getBoundingClientRect().right > edge.right + 1)
      faults.push(`the second column of a table is out of sight: ${table.rows[0].innerText.replace(/\\s+/g, " ")}`);
    box.scrollLeft = box.scrollWidth;
    if (cells[0].getBoundingClientRect().left < edge.left - 1)
      faults.push(`the first column of a table scrolls out of sight: ${table.rows[0].innerText.replace(/\\s+/g, " ")}`);
    box.scrollLeft = 0;
  }
  for (const image of document.images)
    if (!image.complete || !image.naturalWidth) faults.push(`the image ${image.getAttribute("src")} is missing`);
  for (const math of document.querySelectorAll(".math"))
    if (!math.querySelector("mjx-container") || math.querySelector("mjx-merror, [data-mjx-error]"))
      faults.push(`maths is not drawn: ${math.textContent.slice(0, 60)}`);
  for (const part of folded) part.open = false;
  return faults;
}"""


def installed_browser() -> str | None:
    """Returns the path of Chromium or its like, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def find_browser() -> str:
    """Returns the path of Chromium; as root on Debian, installs it when it is missing.

    Raises:
        RuntimeError: With what to run, where it is missing and this may not install it.
    """
    if found := installed_browser():
        return found
    install = f"apt-get install -y --no-install-recommends {' '.join(DEBIAN)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(f"There is no Chromium to read the book with. On Debian: sudo {install}")
    print(f"Installing {' and '.join(DEBIAN)} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update", install):
        done = subprocess.run([*command.split(), "-q"], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`{command}` failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return shutil.which("chromium")


def axe() -> Path:
    """Returns axe-core's script, from the cache after the first time."""

    def fetch(folder: Path) -> dict:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copy(npm_package("axe-core", AXE_VERSION, AXE_SHA512, Path(scratch)) / "axe.min.js", folder)
        return {"source": "axe-core", "revision": AXE_VERSION, "sha512": AXE_SHA512}

    return cached_folder(f"axe-core-{AXE_VERSION}", fetch) / "axe.min.js"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder on this machine while the block runs; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Reader:
    """Opens pages and collects what is wrong with them."""

    def __init__(self, browser: Browser, address: str, screenshots: Path):
        self.browser, self.address, self.screenshots = browser, address, screenshots
        self.axe = axe()
        self.faults: list[dict] = []
        self.heights: dict[str, dict[str, int]] = {}

    async def answer(self, route: Route) -> None:
        """Lets the book's own files through."""
        await (route.continue_() if route.request.url.startswith(self.address) else route.abort())

    async def open(self, name: str, width: str) -> Page:
        """Opens a page, with all that it complains of noted."""
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        page = await self.browser.new_page(viewport=size, color_scheme="light", reduced_motion="reduce")
        await page.route("**/*", self.answer)
        note = functools.partial(self.note, name, width, "")
        page.on("console", lambda m: note("console", m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note("console", str(error)))
        page.on("requestfailed", lambda request: note("console", f"{request.url} was not loaded"))
        await page.goto(self.address + name, wait_until="load")
        await page.evaluate("() => window.MathJax?.startup?.promise")
        return page

    def note(self, name: str, width: str, theme: str, kind: str, words: str) -> None:
        fault = {"page": name, "width": width, "theme": theme, "kind": kind, "fault": words}
        if fault not in self.faults:
            self.faults.append(fault)

    async def read(self, name: str, width: str) -> None:
        """Looks at one page at one width, in both themes."""
        page = await self.open(name, width)
        await page.add_script_tag(path=self.axe)
        height = await page.evaluate("document.documentElement.scrollHeight")
        self.heights.setdefault(name, {})[width] = height
        if height > TALLEST[width] and name not in TALL:
            self.note(
                name, width, "light", "look", f"the page is {height} pixels tall, and {TALLEST[width]} are allowed"
            )
        for theme in ("light", "dark"):
            await page.emulate_media(color_scheme=theme)
            await page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
            for words in await page.evaluate(LOOK):
                self.note(name, width, theme, "look", words)
            result = await page.evaluate("options => axe.run(document, options)", AXE_OPTIONS)
            for violation in result["violations"]:
                for node in violation["nodes"]:
                    words = f"{violation['id']}: {node['html'][:100]} ({(node['failureSummary'] or '')[-120:]})"
                    self.note(name, width, theme, "axe", " ".join(words.split()))
            path = self.screenshots / f"{name.removesuffix('.html').replace('/', '-')}-{width}-{theme}.jpg"
            await page.screenshot(path=path, full_page=True, type="jpeg", quality=75)
        await page.close()

    async def search(self, first: str, word: str) -> None:
        """Searches as a reader does: opens the field, types, presses Enter, and looks at what comes."""
        page = await self.open(first, "desktop")
        await page.keyboard.press("Control+k")
        await page.keyboard.type(word)
        await page.keyboard.press("Enter")
        try:
            await page.wait_for_url("**/search.html?*", timeout=WAIT)
            await page.wait_for_selector("#search-results ul.search li", timeout=WAIT)
        except Waited:
            self.note("search.html", "desktop", "light", "search", f"finds nothing for {word!r}")
        await page.close()


async def read_book(html: Path, names: list[str], screenshots: Path, word: str = "LAPE") -> tuple[list[dict], dict]:
    """Reads pages of a built book.

    Args:
        html: Folder of the built book.
        names: Pages below it, such as "book/intro.html"; the search starts from the first.
        screenshots: Folder that gets a picture of each.
        word: What the search must find.

    Returns:
        What is wrong, each with page, width, theme, kind ("console", "look", "axe", "search") and words; and the height
        of each page in pixels, by page and width.
    """
    screenshots.mkdir(parents=True, exist_ok=True)
    with served(html) as address:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
            reader, gate = Reader(browser, address, screenshots), asyncio.Semaphore(AT_ONCE)

            async def read(name: str, width: str) -> None:
                async with gate:
                    await reader.read(name, width)

            await asyncio.gather(*(read(name, width) for name in names for width in WIDTHS))
            await reader.search(names[0], word)
            await browser.close()
    return reader.faults, reader.heights


def main() -> None:
    """Reads the book; prints what is wrong and ends with 1, or prints what was read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="documents such as book/intro; none: all in _toc.yml")
    arguments = parser.parse_args()
    started = time.monotonic()
    for page in arguments.pages:
        if not (HTML / f"{page}.html").is_file():
            parser.error(f"{HTML} has no page {page!r}; name a document as in book/_toc.yml, such as book/intro.")
    names = [f"{x}.html" for x in arguments.pages or check.contents(check.ROOT / "book" / "_toc.yml")]
    faults, heights = asyncio.run(read_book(HTML, names, SCREENSHOTS))
    for fault in faults:
        print("{page} ({width}, {theme}) {kind}: {fault}".format(**fault))
    counts = {kind: sum(f["kind"] == kind for f in faults) for kind in ("console", "look", "axe", "search")}
    seconds = round(time.monotonic() - started, 1)
    report = {"pages": names, "seconds": seconds, "counts": counts, "faults": faults, "heights": heights}
    write_json(SCREENSHOTS / "report.json", report)
    print(f"{len(names)} pages read at {len(WIDTHS)} widths in 2 themes in {seconds} s: {counts}.")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
