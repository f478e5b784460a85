"""What every notebook starts with: parameters checked in the first cell, with a sentence that names valid values."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Sequence
from typing import Any

from ssetools.errors import InvalidInput
from ssetools.languages import get_language
from ssetools.training.adapter import check_scale
from ssetools.training.methods import method_with

_TYPES = {"str": "a string", "bool": "True or False", "int": "a whole number", "float": "a number", "None": "None"}


def check_parameters() -> None:
    """Checks the parameters of the notebook that calls it, before anything is computed.

    Names, types and defaults are those of the notebook's cell of parameters, which annotates each (`lang: str = "yo"`);
    papermill assigns the values it is given in a cell after that one. `lang`, `languages` (codes separated by spaces),
    `method`, `selection`, `scale` and numbers are checked for their values, all others for their type.
    """
    namespace = sys._getframe(1).f_globals
    declared, given = _declared(namespace.get("In", ()))
    if not declared:
        raise InvalidInput("check_parameters() found no cell of parameters above: run it in a notebook that has one.")
    for name in (x for x in given if x not in declared):
        near = difflib.get_close_matches(name, declared, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"Unknown parameter {name!r}.{hint} This notebook has: {', '.join(declared)}.")
    values = {name: namespace[name] for name in declared}
    for name, (annotation, default) in declared.items():
        _check_type(name, values[name], annotation, default)
    for code in [*([values["lang"]] if "lang" in values else []), *values.get("languages", "").split()]:
        language = get_language(code)
        if language.code != code:  # the notebook names files by it
            raise InvalidInput(f"{code!r} is {language.name}, whose code here is {language.code!r}: write that.")
    method_with(values.get("method", "subnetwork"), values.get("selection", "specific"))
    if values.get("scale") not in (None, "auto"):
        check_scale(values["scale"])


def _declared(cells: Sequence[str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Reads a notebook's cells: annotation and default of each parameter, and names assigned before the first check."""
    declared, given, checked = {}, [], False
    for cell in cells:
        try:
            nodes = ast.parse(cell).body
        except SyntaxError:  # a cell that failed and stays in the notebook's history
            continue
        for node in nodes:
            if isinstance(node, ast.AnnAssign) and node.value:
                declared[ast.unparse(node.target)] = (ast.unparse(node.annotation), ast.unparse(node.value))
            elif isinstance(node, ast.Assign) and not checked:
                given += [target.id for target in node.targets if isinstance(target, ast.Name)]
        checked = checked or "check_parameters()" in cell
    return declared, given


def _check_type(name: str, value: Any, annotation: str, default: str) -> None:
    allowed = annotation.split(" | ")
    actual = "None" if value is None else type(value).__name__
    if actual not in allowed and not (actual == "int" and "float" in allowed):
        wanted = " or ".join(_TYPES.get(x, x) for x in allowed)
        hint = ""
        if "str" in allowed:
            hint = f" papermill's -p reads nan and digits as numbers: use -r {name} {value}, or quote it in YAML."
        if "str" in allowed and actual == "bool":
            hint = f' YAML reads no and off as False, yes and on as True: quote it ({name}: "no").'
        raise InvalidInput(f"{name} must be {wanted}, such as its default {default}; got {value!r}.{hint}")
    if isinstance(value, int | float) and not value >= 0:
        raise InvalidInput(f"{name} must be a number from 0 on; got {value}.")
