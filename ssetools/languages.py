"""One table of languages: names, script, family, and the code that each corpus uses for them.

The languages with a walk-through, and those they are contrasted with, stand here by hand. All others with a complete
text of the declaration come from `data/languages.json`, which `scripts/make_languages.py` makes from packaged sources.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssetools.errors import InvalidInput

_DATA = Path(__file__).parent / "data" / "languages.json"

# Corpora name a language either by its own short code or as ISO 639-3 plus script ("mlt_Latn").
_TAGGED_CORPORA = {"sib200": "_", "flores": "_", "flores_plus": "_", "belebele": "_", "glotcc": "-", "fineweb2": "_"}


@dataclass(frozen=True)
class Language:
    """A language and the codes under which corpora hold it.

    Attributes:
        code: BCP 47 code, the name used everywhere in ssetools ("yo").
        iso639_3: ISO 639-3 code ("yor").
        name: English name.
        own_name: The language's name for itself.
        script: ISO 15924 code of the script ("Latn").
        family: Branch of the language family, as a reader would name it.
        exceptions: Corpus codes that do not follow from `code`, `iso639_3` and `script`.
        corpora: Corpora that are known to hold the language in this script: of "udhr", "mediawiki", "flores", "sib200",
            "belebele" and "fineweb2". (Of GlotCC no packaged list exists: its code is derived.)
        lineage: Glottolog's families, from the widest to the narrowest.
        wikipedia_articles: Articles of its Wikipedia, None without one: how much the web has of it.
    """

    code: str
    iso639_3: str
    name: str
    own_name: str
    script: str
    family: str
    exceptions: dict[str, str] = field(default_factory=dict, hash=False)
    corpora: frozenset[str] = frozenset()
    lineage: tuple[str, ...] = ()
    wikipedia_articles: int | None = None

    def code_for(self, corpus: str) -> str:
        """Returns this language's code in `corpus`, e.g. "est_Latn" for Estonian in "sib200"."""
        if corpus in self.exceptions:
            return self.exceptions[corpus]
        if corpus in _TAGGED_CORPORA:
            return f"{self.iso639_3}{_TAGGED_CORPORA[corpus]}{self.script}"
        if corpus == "udhr":
            return self.iso639_3
        if corpus == "wikipedia":
            return f"20231101.{self.code}"
        return self.code


_ESTONIAN = {"udhr": "est", "sib200": "est_Latn", "flores": "est_Latn", "belebele": "est_Latn"}
_NEPALI = {"udhr": "nep"}
_LATVIAN = {"udhr": "lav"}
_CHINESE = {
    "udhr": "cmn_hans",
    "mediawiki": "zh-hans",
    "sib200": "zho_Hans",
    "flores": "zho_Hans",
    "belebele": "zho_Hans",
    "glotcc": "cmn-Hani",
    "fineweb2": "cmn_Hani",
}

_BY_HAND = (
    Language("mt", "mlt", "Maltese", "Malti", "Latn", "Semitic"),
    Language("af", "afr", "Afrikaans", "Afrikaans", "Latn", "Germanic"),
    Language("is", "isl", "Icelandic", "Íslenska", "Latn", "Germanic"),
    Language("cy", "cym", "Welsh", "Cymraeg", "Latn", "Celtic"),
    Language("mk", "mkd", "Macedonian", "Македонски", "Cyrl", "Slavic"),
    Language("lv", "lvs", "Latvian", "Latviešu", "Latn", "Baltic", _LATVIAN),
    Language("lt", "lit", "Lithuanian", "Lietuvių", "Latn", "Baltic"),
    Language("sl", "slv", "Slovenian", "Slovenščina", "Latn", "Slavic"),
    Language("sk", "slk", "Slovak", "Slovenčina", "Latn", "Slavic"),
    Language("et", "ekk", "Estonian", "Eesti", "Latn", "Uralic", _ESTONIAN),
    Language("ka", "kat", "Georgian", "ქართული", "Geor", "Kartvelian"),
    Language("ne", "npi", "Nepali", "नेपाली", "Deva", "Indo-Aryan", _NEPALI),
    Language("yo", "yor", "Yoruba", "Yorùbá", "Latn", "Volta-Niger"),
    Language("en", "eng", "English", "English", "Latn", "Germanic"),
    Language("fr", "fra", "French", "Français", "Latn", "Romance"),
    Language("de", "deu", "German", "Deutsch", "Latn", "Germanic", {"udhr": "deu_1996"}),
    Language("es", "spa", "Spanish", "Español", "Latn", "Romance"),
    Language("it", "ita", "Italian", "Italiano", "Latn", "Romance"),
    Language("ru", "rus", "Russian", "Русский", "Cyrl", "Slavic"),
    Language("zh", "cmn", "Chinese", "中文", "Hans", "Sinitic", _CHINESE),
    Language("ja", "jpn", "Japanese", "日本語", "Jpan", "Japonic"),
    Language("ar", "arb", "Arabic", "العربية", "Arab", "Semitic"),
)


def _all_languages() -> tuple[Language, ...]:
    """Completes the languages by hand, and adds all others of the data file, sorted by code."""
    by_hand = {language.code: language for language in _BY_HAND}
    found = {}
    for row in json.loads(_DATA.read_text(encoding="utf-8"))["languages"]:
        facts = {
            "corpora": frozenset(row["corpora"]),
            "lineage": tuple(row["lineage"]),
            "wikipedia_articles": row["wikipedia_articles"],
        }
        names = (row[x] for x in ("code", "iso639_3", "name", "own_name", "script", "family"))
        known = by_hand.get(row["code"]) or Language(*names, row["corpora"])
        found[known.code] = replace(known, **facts)
    return tuple(found.pop(code) for code in by_hand) + tuple(found[code] for code in sorted(found))


LANGUAGES = _all_languages()
"""All languages with a complete text of the declaration, the ones with a walk-through first."""

_BY_CODE = {language.code: language for language in LANGUAGES}

PAPER_LANGUAGES = ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")
"""The twelve languages of arXiv 2510.13580, in the order of its mask files."""

TARGET_LANGUAGES = (*PAPER_LANGUAGES, "yo")
"""Languages with an executed walk-through: the paper's twelve and Yoruba."""

CONTRAST_LANGUAGES = ("en", "fr", "de", "es", "it", "ru", "zh", "ja", "ar")
"""Well-served languages profiled beside the targets, so that LAPE has something to contrast with."""

PROFILED_LANGUAGES = (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)
"""The languages that are profiled by default."""


UNSPACED_SCRIPTS = frozenset({"Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Yiii"})
"""Scripts that write no spaces between words; two characters are counted as one word."""


def num_words(text: str, script: str) -> int:
    """Counts the words of a text; in scripts without spaces, two characters are one word."""
    return len(text) // 2 if script in UNSPACED_SCRIPTS else len(text.split())


def get_language(code: str) -> Language:
    """Looks a language up by its code.

    Args:
        code: BCP 47 code ("yo"), as in the table.

    Returns:
        The language.

    Raises:
        ValueError: If the code is unknown; the message names the nearest codes, and where all are listed.
    """
    if code in _BY_CODE:
        return _BY_CODE[code]
    asked = str(code).strip().lower()
    known = {name.lower(): x.code for x in LANGUAGES for name in (x.code, x.iso639_3, x.name, x.own_name)}
    near = dict.fromkeys(known[n] for n in difflib.get_close_matches(asked, known, n=3, cutoff=0.5))
    hint = " Did you mean " + " or ".join(f"{c!r} ({_BY_CODE[c].name})" for c in near) + "?" if near else ""
    raise InvalidInput(
        f"Unknown language {code!r}.{hint} Known codes: {' '.join(x.code for x in _BY_HAND)}, and "
        f"{len(LANGUAGES) - len(_BY_HAND)} more that `ssetools languages` lists."
    )
