"""MediaWiki messages as plain sentences: wikitext resolved, short and untranslated messages dropped."""

from __future__ import annotations

import re

from ssetools.languages import Language

CLEANING_VERSION = 1
MIN_WORDS = 5
_UNSPACED_SCRIPTS = {"Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
_CHOICE = {"PLURAL": -1, "GENDER": 0, "GRAMMAR": -1}


def plain_text(message: str) -> str:
    """Returns a message without markup: one form of each {{PLURAL}}, {{GENDER}} and {{GRAMMAR}}, links as text."""
    import mwparserfromhell

    code = mwparserfromhell.parse(re.sub(r"\{\{\s*SITENAME\s*\}\}", "MediaWiki", message))
    for template in reversed(code.filter_templates()):
        name, _, _ = str(template.name).strip().partition(":")
        choice = _CHOICE.get(name.strip().upper())
        form = str(template.params[choice]) if choice is not None and template.params else ""
        code.replace(template, form)
    return " ".join(code.strip_code(normalize=True, collapse=True).split())


def clean_messages(messages: dict[str, str], english: dict[str, str], language: Language) -> dict[str, str]:
    """Cleans the messages of one language.

    Args:
        messages: Wikitext by key.
        english: The same for English; a message equal to its English one has not been translated.
        language: Decides how words are counted: scripts without spaces by two characters a word.

    Returns:
        Plain text by key, without messages under five words, untranslated ones and repetitions.
    """
    seen, kept = set(), {}
    for key, message in messages.items():
        if language.code != "en" and message == english.get(key):
            continue
        text = plain_text(message)
        if num_words(text, language) >= MIN_WORDS and text not in seen:
            seen.add(text)
            kept[key] = text
    return kept


def num_words(text: str, language: Language) -> int:
    """Counts the words of a text; scripts without spaces count two characters as one."""
    return len(text) // 2 if language.script in _UNSPACED_SCRIPTS else len(text.split())
