"""The scripts, most of which need packages that are not installed here: what they import from this repository exists."""

import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_imports_from_the_library_exist(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    imports = [ast.unparse(node) for node in nodes if node.module.startswith("ssetools")]
    assert imports
    exec("\n".join(imports), {})
