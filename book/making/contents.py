"""Updates the table of contents with the executed notebooks and the pages of the languages, and provides links to them.

Run: PYTHONPATH=book python -m making.contents
"""

from __future__ import annotations

import re
from pathlib import Path

from making.results import BOOK, metrics_by_language

TOC = BOOK / "_toc.yml"
WALKTHROUGH = "yo"
LINKS = {
    "compare": ("every method compared", "compare/06_compare.ipynb"),
    "atlas": ("the atlas", "atlas/07_atlas.ipynb"),
}


def links() -> dict[str, str]:
    """Returns links to notebooks that take long to execute, as MyST substitutions; plain words while they do not exist."""
    return {
        f"link_{name}": f"[{words}]({path})" if (BOOK / path).is_file() else words
        for name, (words, path) in LINKS.items()
    }


def with_notebooks(toc: str) -> str:
    """Returns the table of contents with the entries after each of its marks replaced by the executed notebooks."""
    walkthrough = [
        path for where in (f"languages/{WALKTHROUGH}", "compare") for path in sorted((BOOK / where).glob("*.ipynb"))
    ]
    steps = [_entry(path) for path in walkthrough]
    atlas = [_entry(path) for path in sorted((BOOK / "atlas").glob("*.ipynb"))]
    pages = [f"    {_entry(BOOK / 'languages' / code)}" for code in metrics_by_language()]
    for mark, entries in (("the walk-through", steps), ("the atlas", atlas), ("pages of languages", pages)):
        pattern = rf"( +# {mark}, made by making\.contents\n)(?: +- file: book/(?:languages|compare|atlas)/.*\n)*"
        toc = re.sub(pattern, rf"\g<1>{''.join(entries)}", toc)
    return toc


def _entry(path: Path) -> str:
    return f"      - file: book/{path.relative_to(BOOK).with_suffix('').as_posix()}\n"


def write() -> None:
    """Updates book/_toc.yml."""
    TOC.write_text(with_notebooks(TOC.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
