"""Opens every page of the built book in a browser, and reports errors, layout faults and accessibility violations.

Run: python book/reader.py [pages ...]   (part of `make check-book`)

Each page is opened at the widths of a desktop and of a phone, in the light and the dark theme. Screenshots and report.json
are written to _build/reader/. Requests to other hosts are blocked, since a reader may be offline. axe-core comes from npm.
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
WAIT = 10_000  # milliseconds until search results must appear
SEARCHES = {"LAPE": "lape", "Hausa": "all_languages"}  # words, and a page that must be found
DEBIAN = ("chromium", "fonts-noto-core")
# Rules of axe-core: all that WCAG 2 requires at levels A and AA, such as contrast and text alternatives. One is disabled:
# it requires that a button's accessible name contains its visible text, and the theme's button "Search Ctrl+K" is named "Search".
AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "rules": {"label-content-name-mismatch": {"enabled": False}},
    "resultTypes": ["violations"],
}

# Faults of the layout, with all that is folded open. Content wider than the page is accepted only in a box that scrolls.
LAYOUT_FAULTS = """() => {
  const wide = document.documentElement.clientWidth, faults = [], article = document.querySelector("article");
  const folded = [...document.querySelectorAll("article details:not([open])")];
  for (const part of folded) part.open = true;
  const scrolls = e => e && e !== article && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const out = [...document.querySelectorAll("article *:not(mjx-assistive-mml, mjx-assistive-mml *)")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 1 && box.right > wide + 1 && !scrolls(e.parentElement);
  });
  if (document.documentElement.scrollWidth > wide + 1)
    faults.push(`the page is ${document.documentElement.scrollWidth} pixels wide, the window ${wide}`);
  for (const e of out.slice(0, 3))
    faults.push(`extends beyond the page: ${e.outerHTML.slice(0, 100)}`);
  // On a phone a table may scroll. On a desktop a reader would not notice the hidden last column.
  for (const table of wide < 1000 ? [] : document.querySelectorAll("article table")) {
    const box = table.parentElement;
    if (!table.closest(".cell_output") && box.scrollWidth > box.clientWidth + 1)
      faults.push(`a table is cut off: ${table.rows[0].innerText.replace(/\\s+/g, " ")}`);
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
      faults.push(`a formula is not rendered: ${math.textContent.slice(0, 60)}`);
  for (const part of folded) part.open = false;
  return faults;
}"""


def installed_browser() -> str | None:
    """Returns the path of Chromium or Chrome, or None if neither is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def find_browser() -> str:
    """Returns the path of Chromium; as root on Debian, installs it if it is missing.

    Raises:
        RuntimeError: If it is missing and cannot be installed here; the message has the command that installs it.
    """
    if found := installed_browser():
        return found
    install = f"apt-get install -y --no-install-recommends {' '.join(DEBIAN)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(f"Checking the book needs Chromium, which is not installed. On Debian: sudo {install}")
    print(f"Installing {' and '.join(DEBIAN)} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update", install):
        done = subprocess.run([*command.split(), "-q"], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`{command}` failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return shutil.which("chromium")


def axe() -> Path:
    """Returns the path of axe-core's script, which is fetched once and cached."""

    def fetch(folder: Path) -> dict:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copy(npm_package("axe-core", AXE_VERSION, AXE_SHA512, Path(scratch)) / "axe.min.js", folder)
        return {"source": "axe-core", "revision": AXE_VERSION, "sha512": AXE_SHA512}

    return cached_folder(f"axe-core-{AXE_VERSION}", fetch) / "axe.min.js"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder on the local host within the block; yields the address."""

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Reader:
    """Opens pages and collects their faults."""

    def __init__(self, browser: Browser, address: str, screenshots: Path):
        self.browser, self.address, self.screenshots = browser, address, screenshots
        self.axe = axe()
        self.faults: list[dict] = []
        self.heights: dict[str, dict[str, int]] = {}

    async def block_other_hosts(self, route: Route) -> None:
        """Continues requests for files of the book and aborts all others."""
        await (route.continue_() if route.request.url.startswith(self.address) else route.abort())

    async def open(self, name: str, width: str) -> Page:
        """Opens a page and records the errors that the browser reports."""
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        page = await self.browser.new_page(viewport=size, color_scheme="light", reduced_motion="reduce")
        await page.route("**/*", self.block_other_hosts)
        record = functools.partial(self.record, name, width, "")
        page.on("console", lambda m: record("console", m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: record("console", str(error)))
        page.on("requestfailed", lambda request: record("console", f"{request.url} was not loaded"))
        await page.goto(self.address + name, wait_until="load")
        await page.evaluate("() => window.MathJax?.startup?.promise")
        return page

    def record(self, name: str, width: str, theme: str, kind: str, message: str) -> None:
        """Adds a fault unless it is recorded already."""
        fault = {"page": name, "width": width, "theme": theme, "kind": kind, "fault": message}
        if fault not in self.faults:
            self.faults.append(fault)

    async def check_page(self, name: str, width: str) -> None:
        """Checks one page at one width in both themes, and takes screenshots."""
        page = await self.open(name, width)
        await page.add_script_tag(path=self.axe)
        height = await page.evaluate("document.documentElement.scrollHeight")
        self.heights.setdefault(name, {})[width] = height
        if height > TALLEST[width] and name not in TALL:
            self.record(
                name, width, "light", "layout", f"the page is {height} pixels tall; {TALLEST[width]} are allowed"
            )
        for theme in ("light", "dark"):
            await page.emulate_media(color_scheme=theme)
            await page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
            for message in await page.evaluate(LAYOUT_FAULTS):
                self.record(name, width, theme, "layout", message)
            result = await page.evaluate("options => axe.run(document, options)", AXE_OPTIONS)
            for violation in result["violations"]:
                for node in violation["nodes"]:
                    message = f"{violation['id']}: {node['html'][:100]} ({(node['failureSummary'] or '')[-120:]})"
                    self.record(name, width, theme, "axe", " ".join(message.split()))
            path = self.screenshots / f"{name.removesuffix('.html').replace('/', '-')}-{width}-{theme}.jpg"
            await page.screenshot(path=path, full_page=True, type="jpeg", quality=75)
        await page.close()

    async def search(self, first: str, word: str, result: str) -> None:
        """Searches by keyboard and checks that a page is among the results."""
        page = await self.open(first, "desktop")
        await page.keyboard.press("Control+k")
        await page.keyboard.type(word)
        await page.keyboard.press("Enter")
        try:
            await page.wait_for_url("**/search.html?*", timeout=WAIT)
            await page.wait_for_selector(f"#search-results ul.search a[href*={result}]", state="attached", timeout=WAIT)
        except Waited:
            self.record("search.html", "desktop", "light", "search", f"does not find {result} for {word!r}")
        await page.close()


async def check_pages(html: Path, names: list[str], screenshots: Path) -> tuple[list[dict], dict]:
    """Checks pages of a built book.

    Args:
        html: Folder of the built book.
        names: Pages relative to it, such as "book/intro.html"; the search starts from the first.
        screenshots: Folder for the screenshots.

    Returns:
        The faults, each with page, width, theme, kind ("console", "layout", "axe", "search") and fault; and the height of
        each page in pixels, by page and width.
    """
    screenshots.mkdir(parents=True, exist_ok=True)
    with served(html) as address:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
            reader, limit = Reader(browser, address, screenshots), asyncio.Semaphore(AT_ONCE)

            async def check_one(name: str, width: str) -> None:
                async with limit:
                    await reader.check_page(name, width)

            await asyncio.gather(*(check_one(name, width) for name in names for width in WIDTHS))
            for word, result in SEARCHES.items():
                await reader.search(names[0], word, result)
            await browser.close()
    return reader.faults, reader.heights


def main() -> None:
    """Checks the book and prints the faults; exits with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="documents such as book/intro; none: all of _toc.yml")
    arguments = parser.parse_args()
    started = time.monotonic()
    for page in arguments.pages:
        if not (HTML / f"{page}.html").is_file():
            parser.error(f"{HTML} has no page {page!r}; name a document as in book/_toc.yml, such as book/intro.")
    names = [f"{x}.html" for x in arguments.pages or check.contents(check.ROOT / "book" / "_toc.yml")]
    faults, heights = asyncio.run(check_pages(HTML, names, SCREENSHOTS))
    for fault in faults:
        print("{page} ({width}, {theme}) {kind}: {fault}".format(**fault))
    counts = {kind: sum(f["kind"] == kind for f in faults) for kind in ("console", "layout", "axe", "search")}
    seconds = round(time.monotonic() - started, 1)
    report = {"pages": names, "seconds": seconds, "counts": counts, "faults": faults, "heights": heights}
    write_json(SCREENSHOTS / "report.json", report)
    print(f"{len(names)} pages checked at {len(WIDTHS)} widths in 2 themes in {seconds} s: {counts}.")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
