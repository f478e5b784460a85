"""An interactive view of the atlas: one piece of HTML with its data and script inside, and nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

from ssetools.languages import get_language

_STYLE = """
.atlas{font:14px/1.4 sans-serif;border:1px solid #c9ced6;border-radius:6px;padding:1em;max-width:46em;background:#fff;color:#222}
.atlas select{font:inherit;max-width:100%}.atlas button{font:inherit;margin:.15em .3em .15em 0;cursor:pointer}
.atlas rect{fill:#0b6e99}.atlas text{font-size:10px;fill:#444}.atlas dl{display:grid;grid-template-columns:auto 1fr;gap:.1em 1em}
.atlas dt{color:#666}.atlas dd{margin:0}
"""

_SCRIPT = """
(function(){
const data=JSON.parse(document.getElementById("atlas-data").textContent),box=document.getElementById("atlas-box");
const select=document.getElementById("atlas-select");
const node=(name,text)=>{const e=document.createElement(name);if(text!==undefined)e.textContent=text;return e};
const shape=(name,attributes)=>{const e=document.createElementNS("http://www.w3.org/2000/svg",name);
for(const k in attributes)e.setAttribute(k,attributes[k]);return e};
function bars(layers){const svg=shape("svg",{viewBox:"0 0 460 150",width:"100%",role:"img"}),top=Math.max(1,...layers);
const step=430/layers.length;layers.forEach((n,i)=>{const h=110*n/top,x=25+i*step;
svg.append(shape("rect",{x:x,y:125-h,width:step*.8,height:h}));
const below=shape("text",{x:x+step*.4,y:138,"text-anchor":"middle"});below.textContent=i;
const above=shape("text",{x:x+step*.4,y:121-h,"text-anchor":"middle"});above.textContent=n;svg.append(below,above)});
const label=shape("text",{x:230,y:149,"text-anchor":"middle"});label.textContent="layer";svg.append(label);return svg}
function show(code){const x=data[code];select.value=code;box.replaceChildren();
box.append(node("h4",x.name+" \\u00b7 "+x.own));const facts=node("dl");
[["code",code],["script",x.script],["family",x.family],["neurons",x.neurons]].forEach(([k,v])=>facts.append(node("dt",k),node("dd",v)));
box.append(facts);
if(!x.neurons)box.append(node("p","No neuron is this language's own in this selection."));
else box.append(bars(x.layers));
const near=node("p","Shares most neurons with: ");
x.nearest.forEach(([c,j])=>{const b=node("button",data[c].name+" "+Math.round(100*j)+"%");b.type="button";b.onclick=()=>show(c);near.append(b)});
if(x.nearest.length)box.append(near);
const a=node("a","The language in Glottolog");a.href=x.link;box.append(a)}
Object.entries(data).sort((a,b)=>a[1].name.localeCompare(b[1].name)).forEach(([c,x])=>{const o=node("option",x.name);o.value=c;select.append(o)});
select.onchange=()=>show(select.value);show(document.getElementById("atlas-box").dataset.first)})();
"""


def interactive_atlas(about: Mapping, first: str = "yo") -> str:
    """Returns HTML in which a reader picks a language and sees its neurons by layer and its nearest languages.

    Args:
        about: `languages` of languages.json.
        first: The language shown at first.

    Returns:
        A fragment for one page: a style, the controls, the data as JSON and a script. It loads nothing.

    Raises:
        ValueError: If `first` is not in the atlas.
    """
    if first not in about:
        raise ValueError(f"The atlas has no language {first!r}; it has {' '.join(about)}.")
    rows = {}
    for code, x in about.items():
        language = get_language(code)
        rows[code] = {
            "name": x["name"],
            "own": language.own_name,
            "script": x["script"],
            "family": " \u203a ".join(dict.fromkeys((x["stock"], x["family"]))),
            "neurons": x["neurons"]["5"],
            "layers": x["layers"],
            "nearest": list(x["nearest"].items()),
            "link": f"https://glottolog.org/resource/languoid/iso/{language.iso639_3}",
        }
    # "</" would end the script element that the data stands in.
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<style>{_STYLE}</style><div class="atlas"><label>Language <select id="atlas-select"></select></label>'
        f'<div id="atlas-box" data-first="{html.escape(first)}"></div></div>'
        f'<script type="application/json" id="atlas-data">{data}</script><script>{_SCRIPT}</script>'
    )
