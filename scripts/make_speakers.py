"""Writes book/speakers.json: the number of speakers of each language in the gallery, from CLDR as packaged for langcodes.

Run once: pip install --target DIR --no-deps langcodes language-data marisa-trie, then PYTHONPATH=.:DIR python scripts/make_speakers.py
CLDR's numbers are populations of territories times the share that speaks the language as a first or second language.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import langcodes

from ssetools.files import write_json
from ssetools.languages import TARGET_LANGUAGES

OUTPUT = Path(__file__).resolve().parent.parent / "book" / "speakers.json"


def main() -> None:
    """Reads the numbers and writes the file."""
    packages = ("langcodes", "language-data")
    speakers = {code: langcodes.Language.get(code).speaking_population() for code in TARGET_LANGUAGES}
    source = {"from": "CLDR in language-data", "versions": {name: version(name) for name in packages}}
    print(write_json(OUTPUT, {"source": source, "licence": "Unicode License V3", "speakers": speakers}))


if __name__ == "__main__":
    main()
