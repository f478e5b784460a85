"""The interactive atlas in the built book, in a browser: by keyboard, and on a narrow screen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import reader
import yaml
from playwright.sync_api import sync_playwright

from ssetools import load_atlas

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "book" / "atlas" / "07_atlas.ipynb"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,  # MathJax
    pytest.mark.skipif(
        not reader.installed_browser(), reason="needs Chromium, which `make check-book` installs or says how to"
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page as the book builds it: same configuration, this page alone."""
    folder = tmp_path_factory.mktemp("book")
    contents = {"format": "jb-book", "root": PAGE.relative_to(ROOT).with_suffix("").as_posix()}
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents))
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "--toc", folder / "_toc.yml"]
    done = subprocess.run([*command, "--path-output", folder, "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.rglob("07_atlas.html"))


@pytest.fixture
def page(built):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=reader.find_browser(), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.goto(built.as_uri())
        yield opened
        browser.close()


def test_a_language_is_selected_by_keyboard(page):
    atlas, name = load_atlas(), page.locator(".atlas .name")
    assert page.locator("#atlas-select option").count() == len(atlas)
    assert name.inner_text().startswith("Yoruba")
    assert page.locator(".atlas label").get_attribute("for") == "atlas-select"
    page.locator("#atlas-select").focus()
    page.keyboard.type("Wels")
    assert name.inner_text() == "Welsh \u00b7 Cymraeg"
    layers = [int(n) for n in re.findall(r": (\d+)", page.locator(".atlas svg").first.get_attribute("aria-label"))]
    assert layers == [len(ids) for ids in atlas["cy"]]
    page.keyboard.press("Tab")
    label = page.evaluate("document.activeElement.innerText")
    assert label == page.locator(".atlas button").first.inner_text(), "Tab moves from the list to the nearest language"
    page.keyboard.press("Enter")
    assert name.inner_text().split(" \u00b7 ")[0] == re.sub(r" \d+%$", "", label)
    assert page.evaluate("document.activeElement.id") == "atlas-select", "the focus does not stay on a removed button"
    assert page.locator(".atlas a").first.get_attribute("href").startswith("https://glottolog.org/")


def test_it_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.querySelector('.atlas').getBoundingClientRect().right") <= 360
    assert page.evaluate("(a => a.scrollWidth <= a.clientWidth + 1)(document.querySelector('.atlas'))")
