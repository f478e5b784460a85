"""An interactive view of the atlas: one HTML fragment that contains its data and script and loads nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

from ssetools.languages import get_language

# Follows the theme of the page: the book marks its dark theme on <html>, Jupyter on <body>.
_STYLE = """
.atlas { --ink: #1f2933; --paper: #ffffff; --quiet: #52606d; --line: #9aa5b1; --bar: #0b6e99; --link: #0b5a7d;
  font: 15px/1.5 sans-serif; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 1em; max-width: 46em; }
html[data-theme="dark"] .atlas, body[data-jp-theme-light="false"] .atlas { --ink: #e4e7eb; --paper: #1b222c;
  --quiet: #b0bac5; --line: #5c6b7f; --bar: #4fb3d9; --link: #7cc7e8; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(.atlas) { background: none !important; padding: 0 !important; }
.atlas select, .atlas button { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 4px; padding: .15em .5em; max-width: 100%; }
.atlas button { margin: .15em .4em .15em 0; cursor: pointer; }
.atlas select:focus-visible, .atlas button:focus-visible, .atlas a:focus-visible { outline: 3px solid var(--bar);
  outline-offset: 2px; }
.atlas a { color: var(--link); text-decoration: underline; }
.atlas .name { font-size: 1.25em; font-weight: bold; margin: .8em 0 .4em; }
.atlas dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: 0 0 .6em; }
.atlas dt { color: var(--quiet); font-weight: normal; } .atlas dd { margin: 0; }
.atlas svg { width: 100%; height: auto; } .atlas rect { fill: var(--bar); }
.atlas svg text { font-size: 10px; fill: var(--ink); text-anchor: middle; } .atlas p { margin: .5em 0; }
"""

_SCRIPT = """
(function () {
  const data = JSON.parse(document.getElementById("atlas-data").textContent);
  const box = document.getElementById("atlas-box"), select = document.getElementById("atlas-select");
  function element(name, text, attributes) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return Object.assign(made, attributes);
  }
  function shape(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function bars(layers) {
    const said = "Neurons by layer: " + layers.map((n, i) => "layer " + i + ": " + n).join(", ");
    const svg = shape("svg", { viewBox: "0 0 460 158", role: "img", "aria-label": said });
    const most = Math.max(...layers), step = 450 / layers.length;
    layers.forEach((n, i) => {
      const height = 110 * n / most, x = 5 + i * step, middle = x + 0.4 * step;
      svg.append(shape("rect", { x: x, y: 128 - height, width: 0.8 * step, height: height }),
        shape("text", { x: middle, y: 124 - height }, n), shape("text", { x: middle, y: 140 }, i));
    });
    svg.append(shape("text", { x: 230, y: 154 }, "layer"));
    return svg;
  }
  function show(code) {
    const language = data[code], facts = element("dl"), nearest = element("p", "Shares most neurons with: ");
    select.value = code;
    const name = element("p", language.name, { className: "name" });
    if (language.own !== language.name) name.append(" \\u00b7 ", element("bdi", language.own, { lang: code }));
    const rows = [["code", code], ["script", language.script], ["family", language.family], ["neurons", language.neurons]];
    rows.forEach(([what, value]) => facts.append(element("dt", what), element("dd", value)));
    box.replaceChildren(name, facts);
    const none = element("p", "This selection contains no neurons of this language.");
    box.append(language.neurons ? bars(language.layers) : none);
    language.nearest.forEach(([other, jaccard]) => nearest.append(element("button",
      data[other].name + " " + Math.round(100 * jaccard) + "%",
      { type: "button", onclick: () => { show(other); select.focus(); } })));
    if (language.nearest.length) box.append(nearest);
    box.append(element("a", language.name + " in Glottolog", { href: language.link }));
  }
  const named = Object.entries(data).sort((a, b) => a[1].name.localeCompare(b[1].name, "en"));
  named.forEach(([code, language]) => select.append(element("option", language.name, { value: code })));
  select.onchange = () => show(select.value);
  show(box.dataset.first);
})();
"""


def interactive_atlas(languages: Mapping, first: str = "yo") -> str:
    """Returns HTML in which a reader selects a language and sees its neurons by layer and its nearest languages.

    Args:
        languages: `languages` of languages.json.
        first: Code of the language that is shown first.

    Returns:
        An HTML fragment with a style, the controls, the data as JSON and a script. It loads nothing.

    Raises:
        ValueError: If `first` is not in the atlas.
    """
    if first not in languages:
        raise ValueError(f"The atlas has no language {first!r}; it has {' '.join(languages)}.")
    rows = {}
    for code, facts in languages.items():
        language = get_language(code)
        rows[code] = {
            "name": facts["name"],
            "own": language.own_name,
            "script": facts["script"],
            "family": " \u203a ".join(dict.fromkeys((facts["stock"], facts["family"]))),
            "neurons": facts["neurons"]["5"],
            "layers": facts["layers"],
            "nearest": list(facts["nearest"].items()),
            "link": f"https://glottolog.org/resource/languoid/iso/{language.iso639_3}",
        }
    # "</" would end the script element that contains the data.
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<style>{_STYLE}</style><div class="atlas"><label for="atlas-select">Language</label> '
        f'<select id="atlas-select"></select><div id="atlas-box" aria-live="polite" '
        f'data-first="{html.escape(first)}"></div></div>'
        f'<script type="application/json" id="atlas-data">{data}</script><script>{_SCRIPT}</script>'
    )
