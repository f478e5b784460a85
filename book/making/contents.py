"""The table of contents lists the notebooks of every language that has been executed.

Run: PYTHONPATH=book python -m making.contents
"""

from __future__ import annotations

import re

from making.results import BOOK, name_of
from ssetools.languages import TARGET_LANGUAGES

TOC = BOOK / "_toc.yml"
WALKTHROUGH = "yo"
_TITLES = {"03_finetune": "fine-tune", "04_evaluate": "evaluate"}
_MARK = "      # Made from book/languages/ by `PYTHONPATH=book python -m making.contents`.\n"


def with_languages(toc: str) -> str:
    """Returns the table of contents with the chapters after its mark made anew from what lies in book/languages/."""
    lines = []
    for code in TARGET_LANGUAGES:
        for name, title in _TITLES.items():
            if code != WALKTHROUGH and (BOOK / "languages" / code / f"{name}.ipynb").is_file():
                lines.append(f'      - file: book/languages/{code}/{name}\n        title: "{name_of(code)}: {title}"\n')
    return re.sub(rf"(?s)({re.escape(_MARK)}).*?(?=  - caption:)", lambda m: m[1] + "".join(lines), toc)


def write() -> None:
    """Brings book/_toc.yml up to date."""
    TOC.write_text(with_languages(TOC.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
