"""What moves on the book's pages works without a server, by keyboard, and for a screen reader."""

import asyncio

import pytest
import reader
from making.extension import STATIC
from playwright.async_api import async_playwright

pytestmark = [pytest.mark.slow, pytest.mark.network]  # a browser, and axe-core
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page</title>
<link rel="stylesheet" href="{static}/book.css"></head><body><main><h1>Page</h1>{body}</main>
<script src="{static}/{script}"></script></body></html>"""
EXPLORER = '<div id="lape-explorer" class="lape-explorer"></div>'
PLANE = """<div class="plane" role="group" aria-label="Interactive figure"><script type="application/json">
{"dial": "scale", "gain": {"title": "loss", "digits": 1}, "note": "Made up.",
 "harms": [{"key": "drift", "title": "drift", "digits": 2}, {"key": "others", "title": "other languages", "digits": 1}],
 "methods": [
  {"name": "the neurons", "settings": [{"at": "0", "gain": 0, "drift": 0, "others": 0},
    {"at": "0.5", "gain": -4, "drift": 0.01, "others": -0.2}, {"at": "1", "gain": -6, "drift": 0.03, "others": 1.5}]},
  {"name": "LoRA", "settings": [{"at": "0", "gain": 0, "drift": 0, "others": 0},
    {"at": "1", "gain": -8, "drift": 0.2, "others": 2}]}]}</script></div>"""
LIST = """<div class="all-languages"><table><thead><tr><th>language</th><th>code</th></tr></thead><tbody>
<tr><td>Hausa</td><td>ha</td></tr><tr><td>Yoruba (Yorùbá)</td><td>yo</td></tr></tbody></table></div>"""


@pytest.fixture
def visit(tmp_path):
    """Opens a page with a script from its file, does something, and asserts that axe finds nothing wrong."""
    if not reader.installed_browser():
        pytest.skip("needs Chromium, which `make check-book` installs or says how to")

    def run(body, script, act):
        path = tmp_path / "page.html"
        path.write_text(PAGE.format(static=STATIC.as_uri(), body=body, script=script), encoding="utf-8")

        async def opened():
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=reader.find_browser(), args=["--no-sandbox", "--allow-file-access-from-files"]
                )
                page = await browser.new_page()
                await page.goto(path.as_uri())
                await act(page)
                await page.add_script_tag(path=reader.axe())
                result = await page.evaluate("options => axe.run(document, options)", reader.AXE_OPTIONS)
                await browser.close()
            assert [violation["id"] for violation in result["violations"]] == []

        asyncio.run(opened())

    return run


def test_the_lape_figure_follows_its_sliders(visit):
    async def act(page):
        said, value = page.locator(".lape-verdict"), page.locator(".lape-value")
        assert await said.text_content() == "Selected. Assigned to: Yoruba."
        await page.get_by_role("button", name="All alike").click()
        assert await said.text_content() == "Not selected: its entropy is above 1.00, it fires for many languages."
        assert "LAPE 1.39 of at most ln 4 = 1.39" in await value.text_content()
        await page.get_by_role("button", name="Hardly fires").click()
        assert "LAPE 0.00 " in await value.text_content()
        assert await said.text_content() == "Excluded: it never fires on more than 0.25 of the tokens."
        # By keyboard alone: the slider of Welsh to its end, then a step back.
        await page.get_by_label("Welsh").focus()
        await page.keyboard.press("End")
        await page.keyboard.press("ArrowLeft")
        assert await page.locator("output").nth(2).text_content() == "0.99"
        assert await said.text_content() == "Selected. Assigned to: Welsh."

    visit(EXPLORER, "lape.js", act)


def test_the_list_of_languages_is_filtered(visit):
    async def act(page):
        field, rows = page.get_by_label("Find a language"), page.locator("tbody tr:visible")
        assert await rows.count() == 2
        await field.fill("haus")
        assert await rows.all_text_contents() == ["Hausaha"]
        await field.fill("yorub")
        assert await rows.count() == 1
        assert await page.get_by_text("1 of 2 languages").count() == 1

    visit(LIST, "languages.js", act)


def test_the_plane_follows_method_and_dial(visit):
    async def act(page):
        said = page.locator(".plane-value")
        assert await said.text_content() == "The neurons at scale 1: loss −6.0; drift +0.03; other languages +1.5."
        right = float(await page.locator("circle").get_attribute("cx"))
        # By keyboard alone: one step down, then the other method, and back to the setting that was left.
        await page.get_by_label("Scale").focus()
        await page.keyboard.press("ArrowLeft")
        assert await said.text_content() == "The neurons at scale 0.5: loss −4.0; drift +0.01; other languages −0.2."
        assert float(await page.locator("circle").get_attribute("cx")) < right
        await page.get_by_label("the neurons").focus()
        await page.keyboard.press("ArrowDown")
        assert await said.text_content() == "LoRA at scale 1: loss −8.0; drift +0.20; other languages +2.0."
        await page.keyboard.press("ArrowUp")
        assert "neurons at scale 0.5" in await said.text_content()
        await page.get_by_label("other languages").check()
        assert await page.get_by_text("other languages; left is less harm").count() == 1

    visit(PLANE, "plane.js", act)
