"""The check in a browser: a correct page passes at every width and in both themes, and each fault is reported."""

import asyncio

import pytest
import reader

REASON = "needs Chromium, which `make check-book` installs or says how to"
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
dark.addEventListener("change", follow); follow();
document.addEventListener("keydown", event => {
  if (event.key === "k" && event.ctrlKey) { document.querySelector("input").focus(); event.preventDefault(); }
});
</script><style>
body {color: #111; background: #fff}
[data-theme=dark] body {color: #eee; background: #111}
[data-theme=dark] .grey {color: #333}
</style></head><body>
<form action="search.html"><input name="q" aria-label="Search"></form><article><h1>A page</h1>BODY</article></body></html>"""
FOUND = '<div id="search-results"><ul class="search"><li><a href="lape.html">LAPE</a></li>\
<li><a href="all_languages.html">All</a></li></ul></div>'
# A row of three columns in a box that scrolls on a phone: the look of the first column, and the width of the second.
TABLE = """<div style="overflow-x: auto"><table style="width: 100%"><tr><th style="min-width: 200px; {}">name</th>
<td style="min-width: {}px">decides</td><td style="min-width: 300px">else</td></tr></table></div>"""
DOT = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/%3E"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads a book of one page with the body given; returns what is wrong and the screenshots."""
    if not reader.installed_browser():
        pytest.skip(REASON)

    def run(body, results=FOUND):
        folder = tmp_path_factory.mktemp("book")
        (folder / "page.html").write_text(PAGE.replace("BODY", body))
        (folder / "search.html").write_text(PAGE.replace("BODY", results))
        faults, heights = asyncio.run(reader.check_pages(folder, ["page.html"], folder / "pictures"))
        assert set(heights["page.html"]) == set(reader.WIDTHS)
        return faults, sorted(p.name for p in (folder / "pictures").iterdir())

    return run


@pytest.mark.slow
@pytest.mark.network  # axe-core
def test_a_correct_page_has_no_faults(read):
    wide = '<div style="overflow-x: auto"><div style="width: 2000px">scrolls by itself</div></div>'
    drawn = '<span class="math"><mjx-container>x</mjx-container></span>'
    table = TABLE.format("position: sticky; left: 0", 90).replace("200px", "120px")
    faults, pictures = read(f'<p>Words.</p>{wide}{drawn}{table}<img src="{DOT}" alt="A dot.">')
    assert faults == []
    assert pictures == [f"page-{w}-{t}.jpg" for w in ("desktop", "phone") for t in ("dark", "light")]


@pytest.mark.slow
@pytest.mark.network
def test_every_fault_is_reported(read):
    body = f"""<p class="grey">grey on black</p> <img src="{DOT}"> <img src="gone.png" alt="Gone.">
    <div style="width: 500px">wider than a phone</div> <span class="math">\\(x\\)</span>
    <script>console.error("oh no"); undefinedFunction();</script>
    <script src="https://elsewhere.example/lib.js"></script>"""
    faults, _ = read(body, results="<p>Nothing.</p>")
    named = {
        "console": [
            "oh no",
            "undefinedFunction is not defined",
            "https://elsewhere.example/lib.js was not loaded",
            "404",
        ],
        "layout": [
            "the image gone.png is missing",
            "a formula is not rendered",
            "wide, the window 390",
            "extends beyond the page",
        ],
        "axe": ["color-contrast", "image-alt"],
        "search": ["does not find lape for 'LAPE'", "does not find all_languages for 'Hausa'"],
    }
    for kind, words in named.items():
        for part in words:
            assert any(f["kind"] == kind and part in f["fault"] for f in faults), part
    contrast = {(f["width"], f["theme"]) for f in faults if "color-contrast" in f["fault"]}
    assert contrast == {("desktop", "dark"), ("phone", "dark")}, "grey has too little contrast only in the dark theme"
    assert {f["width"] for f in faults if "extends beyond the page" in f["fault"]} == {"phone"}


@pytest.mark.slow
@pytest.mark.network
def test_what_is_cut_off_or_too_tall_is_reported(read):
    code = '<pre style="width: 100px; overflow-x: auto" tabindex="0">a line that is longer than its box</pre>'
    faults, _ = read(
        f'{code}<details><summary>More</summary>{TABLE.format("", 250)}</details><div style="height: 9000px">'
    )
    named = {
        ("a line of code is cut off", "desktop"),
        ("the second column of a table is out of sight: name decides else", "phone"),
        ("the first column of a table scrolls out of sight: name decides else", "phone"),
        ("pixels tall; 8000 are allowed", "desktop"),
    }
    for words, width in named:
        assert {f["width"] for f in faults if words in f["fault"]} == {width}, words


def test_without_a_browser_the_error_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(reader.shutil, "which", lambda name: None)
    monkeypatch.setattr(reader.os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="On Debian: sudo apt-get install -y --no-install-recommends chromium"):
        reader.find_browser()
