"""Every language that ssetools knows, as one table: its code, what text there is of it, and its neurons in the atlas."""

from __future__ import annotations

from making.results import BOOK, read
from ssetools.languages import LANGUAGES, TARGET_LANGUAGES, Language

_CORPORA = {"mediawiki": "messages", "sib200": "SIB-200", "belebele": "BELEBELE", "fineweb2": "FineWeb2"}


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    return {"all-languages": table()}


def table() -> str:
    """Writes a row a language, sorted by name: name, code, family and script, texts beside the declaration, neurons."""
    atlas = (read("atlas/languages.json") or {"languages": {}})["languages"]
    lines = ["| language | code | family, script | texts beside the declaration | neurons |", "|:--|:--|:--|:--|--:|"]
    for language in sorted(LANGUAGES, key=lambda x: x.name):
        texts = ", ".join(title for corpus, title in _CORPORA.items() if corpus in language.corpora) or "none"
        neurons = atlas.get(language.code, {}).get("neurons", {}).get("5", "")
        family = f"{language.family}, {language.script}"
        lines.append(f"| {_name(language)} | `{language.code}` | {family} | {texts} | {neurons} |")
    return "\n".join(lines) + "\n"


def _name(language: Language) -> str:
    """Returns the name with the language's own name; of a language with a page, as a link to it."""
    name = language.name.replace("|", "/")
    page = BOOK / "languages" / f"{language.code}.md"
    shown = f"[{name}](languages/{page.name})" if language.code in TARGET_LANGUAGES and page.is_file() else name
    return shown if language.own_name in (language.name, "") else f"{shown} ({language.own_name})"
