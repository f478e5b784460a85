"""A table of all languages of ssetools: code, available texts, and number of neurons in the atlas."""

from __future__ import annotations

from making.results import BOOK, read
from ssetools.languages import LANGUAGES, TARGET_LANGUAGES, Language

_CORPORA = {"mediawiki": "messages", "sib200": "SIB-200", "belebele": "BELEBELE", "fineweb2": "FineWeb2"}


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    return {"all-languages": table()}


def table() -> str:
    """Returns a row for each language, sorted by name: name, code, family and script, other texts, neurons."""
    atlas = (read("atlas/languages.json") or {"languages": {}})["languages"]
    lines = ["| language | code | family, script | texts beside the declaration | neurons |", "|:--|:--|:--|:--|--:|"]
    for language in sorted(LANGUAGES, key=lambda x: x.name):
        texts = ", ".join(title for corpus, title in _CORPORA.items() if corpus in language.corpora) or "none"
        neurons = atlas.get(language.code, {}).get("neurons", {}).get("5", "")
        family = f"{language.family}, {language.script}"
        lines.append(f"| {_name(language)} | `{language.code}` | {family} | {texts} | {neurons} |")
    return "\n".join(lines) + "\n"


def _name(language: Language) -> str:
    """Returns the English name and the language's own name; the name is a link if the language has a page."""
    name = language.name.replace("|", "/")
    page = BOOK / "languages" / f"{language.code}.md"
    shown = f"[{name}](languages/{page.name})" if language.code in TARGET_LANGUAGES and page.is_file() else name
    return shown if language.own_name in (language.name, "") else f"{shown} ({language.own_name})"
