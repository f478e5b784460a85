"""Every language with a complete text of the declaration: its names, script, family, and its code in each corpus.

The table is `data/languages.json`, which `scripts/make_languages.py` makes from packaged sources.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ssetools.errors import InvalidInput

_DATA = Path(__file__).parent / "data" / "languages.json"

# Of the corpora that name a language by ISO 639-3 code and script ("mlt_Latn"): what joins the two.
_TAGGED_CORPORA = {"sib200": "_", "flores": "_", "flores_plus": "_", "belebele": "_", "glotcc": "-", "fineweb2": "_"}


@dataclass(frozen=True)
class Language:
    """A language and the codes under which corpora hold it.

    Attributes:
        code: BCP 47 code, the name used everywhere in ssetools ("yo").
        iso639_3: ISO 639-3 code ("yor").
        name, own_name: Its names in English and in the language itself.
        script: ISO 15924 code of the script ("Latn").
        family: Branch of the language family, as a reader would name it.
        lineage: Glottolog's families, from the widest to the narrowest.
        corpora: Its code in each corpus that is known to hold the language in this script: of "udhr", "mediawiki",
            "flores", "sib200", "belebele" and "fineweb2". (Of GlotCC no packaged list exists: its code is derived.)
        wikipedia_articles: Articles of its Wikipedia, None without one: how much the web has of it.
    """

    code: str
    iso639_3: str
    name: str
    own_name: str
    script: str
    family: str
    lineage: tuple[str, ...]
    corpora: Mapping[str, str] = field(hash=False)
    wikipedia_articles: int | None = None

    def code_for(self, corpus: str) -> str:
        """Returns this language's code in `corpus`, e.g. "est_Latn" for Estonian in "sib200"."""
        if corpus in self.corpora:
            return self.corpora[corpus]
        if corpus in _TAGGED_CORPORA:
            script = "Hani" if corpus == "glotcc" and self.script in ("Hans", "Hant") else self.script
            return f"{self.iso639_3}{_TAGGED_CORPORA[corpus]}{script}"
        return f"20231101.{self.code}" if corpus == "wikipedia" else self.code


PAPER_LANGUAGES = ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")
"""The twelve languages of arXiv 2510.13580, in the order of its mask files."""
TARGET_LANGUAGES = (*PAPER_LANGUAGES, "yo")
"""Languages with an executed walk-through: the paper's twelve and Yoruba."""
CONTRAST_LANGUAGES = ("en", "fr", "de", "es", "it", "ru", "zh", "ja", "ar")
"""Well-served languages profiled beside the targets, so that LAPE has something to contrast with."""
PROFILED_LANGUAGES = (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)  # by default


def _read_table() -> dict[str, Language]:
    languages: dict[str, Language] = {}
    for row in json.loads(_DATA.read_text(encoding="utf-8"))["languages"]:
        del row["texts"]
        languages[row["code"]] = Language(**row | {"lineage": tuple(row["lineage"])})
    return {code: languages[code] for code in dict.fromkeys([*PROFILED_LANGUAGES, *sorted(languages)])}


_BY_CODE = _read_table()
LANGUAGES = tuple(_BY_CODE.values())  # those that are profiled by default first
UNSPACED_SCRIPTS = frozenset({"Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Yiii"})


def num_words(text: str, script: str) -> int:
    """Counts the words of a text; in scripts without spaces between words, two characters are one word."""
    return len(text) // 2 if script in UNSPACED_SCRIPTS else len(text.split())


# What people write besides the codes of the table: codes of macrolanguages, codes that were replaced, and the older of
# two codes of ISO 639-2.
_OTHER_CODES = (
    "ara=ar aym=ay aze=az est=et fas=fa fil=tl iw=he kur=ku lav=lv mlg=mg mon=mn ms=zlm msa=zlm nep=ne no=nb nor=nb "
    "orm=om sq=als sqi=als swa=sw uzb=uz yid=yi zho=zh alb=als arm=hy baq=eu bur=my chi=zh cze=cs dut=nl fre=fr geo=ka "
    "ger=de gre=el ice=is mac=mk mao=mi may=zlm per=fa rum=ro slo=sk tib=bo wel=cy"
)
_SCRIPTS = {"Hant", *(language.script for language in LANGUAGES)}


def _folded(name: str) -> str:
    """A name for comparisons: without case and accents, its words joined by "-"."""
    letters = unicodedata.normalize("NFKD", str(name).casefold())
    return "-".join(re.split(r"[-_\s]+", re.sub("[\u0300-\u036f]", "", letters).strip()))


@functools.cache
def _by_name() -> dict[str, Language]:
    """Languages by everything that they are called; where two have one name, codes come before names."""
    names = [(other, _BY_CODE[code]) for other, code in (pair.split("=") for pair in _OTHER_CODES.split())]
    names += [(name, x) for x in LANGUAGES for name in (x.code, x.iso639_3)]
    names += [(name, x) for x in LANGUAGES for name in (*x.corpora.values(), *map(x.code_for, _TAGGED_CORPORA))]
    names += [(name, x) for x in LANGUAGES for name in (x.name, x.own_name)]
    return {_folded(name): x for name, x in reversed(names)}


def _parse_code(code: str) -> tuple[Language | None, str]:
    """Returns the language of a code or name, and the script that the code asks for: "" for the language's own."""
    if language := _by_name().get(_folded(code)):
        return language, ""
    base, *subtags = _folded(code).split("-")
    language = _by_name().get(base) if len(base) in (2, 3) else None
    scripts = [subtag.title() for subtag in subtags if subtag.title() in _SCRIPTS]
    regions = [subtag for subtag in subtags if re.fullmatch("[a-z]{2}|[0-9]{3}", subtag)]
    if language is None or len(scripts) + len(regions) < len(subtags):
        return None, ""
    scripts += ["Hant"] if language.code == "zh" and {"tw", "hk", "mo"} & set(regions) else []
    return language, next((script for script in scripts if script != language.script), "")


def find_language(name: str) -> Language | None:
    """Returns the language of a code or name in any usual form ("yo", "yor_Latn", "Yoruba", "pt-BR"), or None."""
    language, other_script = _parse_code(name)
    return None if other_script else language


def get_language(code: str) -> Language:
    """Looks a language up by its code ("yo"), another code of it ("yor", "yor_Latn", "yo-NG"), or its name ("Yoruba").

    Varieties of a region are not distinguished: "pt-BR" is Portuguese.

    Raises:
        InvalidInput: If the code is unknown, with the nearest codes, or asks for a script that the table does not have.
    """
    language, other_script = _parse_code(code)
    if language and other_script:
        raise InvalidInput(
            f"{code!r} is {language.name} in the script {other_script}; here {language.name} is in {language.script}. "
            f"Use {language.code!r}, with text in that script."
        )
    if language:
        return language
    near = dict.fromkeys(_by_name()[name] for name in difflib.get_close_matches(_folded(code), _by_name()))
    hint = " Did you mean " + " or ".join(f"{x.code!r} ({x.name})" for x in near) + "?" if near else ""
    raise InvalidInput(
        f"Unknown language {code!r}.{hint} Known codes: {' '.join(PROFILED_LANGUAGES)}, and "
        f"{len(LANGUAGES) - len(PROFILED_LANGUAGES)} more that `ssetools languages` lists."
    )
