"""Fetches MathJax from npm into the cache, so that a built book displays formulas without a network."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ssetools.files import cached_folder
from ssetools.text import embedded

VERSION = "3.2.2"
SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts", "input/tex/extensions", "ui", "a11y")


def folder() -> Path:
    """Returns the folder with `tex-mml-chtml.js`, its fonts and its extensions.

    Raises:
        RuntimeError: If npm is missing or cannot fetch the package.
        ValueError: If the package does not have the pinned SHA-512.
    """
    return cached_folder(f"mathjax-{VERSION}", _fetch)


def _fetch(target: Path) -> dict:
    print(f"Fetching MathJax {VERSION} (npm) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        package = embedded.npm_package("mathjax", VERSION, SHA512, Path(scratch))
        for name in _PARTS:
            source = package / "es5" / name
            if source.is_dir():
                shutil.copytree(source, target / name)
            else:
                shutil.copy(source, target / name)
        shutil.copy(package / "LICENSE", target / "LICENSE")
    return {"source": "mathjax", "revision": VERSION, "sha512": SHA512}
