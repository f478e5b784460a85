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
