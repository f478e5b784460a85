"""The table of contents lists every notebook that has been executed; pages link to it once it is there.

Run: PYTHONPATH=book python -m making.contents
"""

from __future__ import annotations

import re

from making.results import BOOK, name_of
from ssetools.languages import TARGET_LANGUAGES

TOC = BOOK / "_toc.yml"
WALKTHROUGH = "yo"
LINKS = {
    "compare": ("every method compared", "compare/06_compare.ipynb"),
    "atlas": ("the atlas", "atlas/07_atlas.ipynb"),
}
_TITLES = {"03_finetune": "fine-tune", "04_evaluate": "evaluate"}


def links() -> dict[str, str]:
    """Returns links to notebooks that take long to execute, as MyST substitutions; plain words until they are there."""
    return {
        f"link_{name}": f"[{words}]({path})" if (BOOK / path).is_file() else words
        for name, (words, path) in LINKS.items()
    }


def with_notebooks(toc: str) -> str:
    """Returns the table of contents with the entries after each of its marks made anew from what has been executed."""
    walked = [
        path for where in (f"languages/{WALKTHROUGH}", "compare") for path in sorted((BOOK / where).glob("*.ipynb"))
    ]
    steps = [_entry(path) for path in walked]
    atlas = [_entry(path) for path in sorted((BOOK / "atlas").glob("*.ipynb"))]
    others = [
        _entry(path, f"{name_of(code)}: {title}")
        for code in TARGET_LANGUAGES
        for name, title in _TITLES.items()
        if code != WALKTHROUGH and (path := BOOK / "languages" / code / f"{name}.ipynb").is_file()
    ]
    for mark, entries in (("the walk-through", steps), ("the atlas", atlas), ("other languages", others)):
        pattern = rf"(?s)( +# {mark}, made by making\.contents\n).*?(?=  - caption:)"
        toc = re.sub(pattern, rf"\g<1>{''.join(entries)}", toc)
    return toc


def _entry(path, title: str = "") -> str:
    line = f"      - file: book/{path.relative_to(BOOK).with_suffix('').as_posix()}\n"
    return line + f'        title: "{title}"\n' if title else line


def write() -> None:
    """Brings book/_toc.yml up to date."""
    TOC.write_text(with_notebooks(TOC.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
