"""The scripts, most of which need packages that are not installed here: what they import from this repository exists."""

import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_uses_of_the_library_exists(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports = [ast.unparse(node) for node in nodes if node.module.startswith("ssetools")]
    assert imports
    names = {}
    exec("\n".join(imports), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            assert hasattr(names[ast.unparse(node.value)], node.attr), ast.unparse(node)
